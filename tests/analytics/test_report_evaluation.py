"""What the page of an evaluation says that a run's does not: abstention, slices, other outputs, the published figures."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from jobs import evaluate
from jobs.report import main
from pipeline.analytics.evaluate.published import CARD_METRICS, TEST_SETS
from pipeline.analytics.evaluate.tables import speakers_of
from pipeline.analytics.report.page import formatted
from pipeline.analytics.report.result import DIGITS, result_section
from pipeline.dataset.plan import read_shard
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from tests.analytics import test_evaluate
from tests.analytics.test_report import Read, asked, same
from tests.support.outputs import plan_rows, publish_plan, recognised


def page_of(folder: Path, *outputs: str, flags: tuple[str, ...] = ()) -> Read:
    """Evaluate, write, and read the page of what was written."""
    arguments = [*outputs, "--labels", "label", "--resamples", "50", "--write", str(folder / "figures"), *flags]
    assert evaluate.main(arguments) == 0
    assert main(["--evaluation", str(folder / "figures"), "--to", str(folder / "page.html")]) == 0
    return Read((folder / "page.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    return test_evaluate.output_of(tmp_path_factory.mktemp("evaluated"), test_evaluate.records())


def test_how_two_outputs_differ(output, tmp_path):
    """Fails if a figure of the comparison is another than a query over the predictions gives, or its test is not told."""
    second = test_evaluate.output_of(tmp_path, test_evaluate.records()[:-10], seed=100)
    read = page_of(tmp_path, output, second)
    rows = {row[0]: row[1:] for row in read.tables["comparison-1"]}
    predictions = f"'{tmp_path}/figures/predictions.parquet'"
    ((first, other, only_first, only_second),) = asked(f"""SELECT avg(a."right"::INT), avg(b."right"::INT),
        sum((a."right" AND NOT b."right")::INT), sum((b."right" AND NOT a."right")::INT)
        FROM {predictions} a JOIN {predictions} b USING (utterance_id)
        WHERE a.output = '{output}' AND b.output = '{second}'""")
    assert rows["accuracy"][:3] == pytest.approx([first, other, other - first])
    assert rows["accuracy"][3] <= other - first <= rows["accuracy"][4]
    assert rows["accuracy"][5:7] == [only_first, only_second] and 0 < rows["accuracy"][7] <= 1
    assert rows["uar"][5:9] == ["\N{EN DASH}"] * 4  # the test is of the accuracies alone
    assert f"Only the second is correct in {only_second:.0f}" in read.text and "McNemar, exact" in read.text
    assert "no figure includes 10 in the first alone" in read.text


def test_nothing_shared_is_said(output, tmp_path):
    """Fails if the page of two outputs without a shared utterance cannot be made, or compares them all the same."""
    second = test_evaluate.output_of(tmp_path, test_evaluate.records(prefix="x", count=40))
    read = page_of(tmp_path, output, second)
    assert "comparison-1" not in read.tables and "nothing can be compared" in read.text


def test_abstention_and_slices_are_those_of_the_rows(output, tmp_path):
    """Fails if the curve is of other rows than those above a bound, or a slice of three rows looks like any other."""
    read = page_of(tmp_path, output, flags=("--slices", "speaker,segment_index"))
    predictions = f"'{tmp_path}/figures/predictions.parquet'"
    bounds = [row[0] for row in read.tables["abstention-1"]]
    assert bounds[0] == 0.3 and bounds[-1] == 0.999
    for bound, rows, share, accuracy in read.tables["abstention-1"]:
        ((count, whole, right),) = asked(f"""SELECT count(*) FILTER (confidence >= {bound}), count(*),
            avg("right"::INT) FILTER (confidence >= {bound}) FROM {predictions}""")
        assert (rows, share) == (count, pytest.approx(count / whole))
        assert accuracy == (pytest.approx(right) if count else "\N{EN DASH}")
    small = {(row[0], row[1]): row[3] for row in read.tables["slices-1"]}
    assert small["segment_index", "1"] == "yes" and small["speaker", "007"] == "no"
    (whole,) = [row for row in read.tables["slices-1"] if row[:2] == ["segment_index", "0"]]
    assert whole[5] <= whole[4] <= whole[6]


def test_the_result_against_guessing_comes_first(output, tmp_path):
    """Fails if another section or a warning comes before the result, or its words are not those of the evaluation."""
    read = page_of(tmp_path, output)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert next(iter(read.tables)) == "figures-1"
    uar = next(row for row in read.tables["figures-1"] if row[0] == "uar")
    guess = max(uar[4], uar[5])
    assert uar[1] < guess  # labels of this output are chance
    assert (
        f"UAR {uar[1]:.3f} (interval {uar[2]:.3f} to {uar[3]:.3f}), not better than guessing, {guess:.3f}." in read.text
    )
    (warnings,) = [part for part in page.split("<details") if 'id="warnings"' in part]
    evaluation = json.loads((tmp_path / "figures/metrics.json").read_text())["outputs"][0]
    assert warnings.count("<li>") == len(evaluation["warnings"]) + len(evaluation["published"]) > 1
    assert not warnings.partition(">")[0].endswith("open") and "another test set; the warnings say why" in read.text
    assert "Evaluation of" in page.partition("<title>")[2].partition("</title>")[0]


@pytest.mark.parametrize(
    ("figure", "low", "guess", "sentence"),
    [
        (0.8714, 0.8, 0.1428, "UAR 0.871 (interval 0.800 to 0.900), guessing 0.143."),
        (0.2, 0.1, 0.1428, "UAR 0.200 (interval 0.100 to 0.900); guessing, 0.143, is within the interval."),
        (0.1428, 0.1, 0.1428, "UAR 0.143 (interval 0.100 to 0.900), not better than guessing, 0.143."),
        (0.8714, None, 0.1428, "UAR 0.871, guessing 0.143."),
    ],
)
def test_a_result_is_worded_by_its_interval(figure, low, guess, sentence):
    """Fails if a result that may be chance is worded like one that is not."""
    high = None if low is None else 0.9
    section = result_section(
        [], [("uar", figure, low, high, guess, 0.1, None)], "", name="n", where="", published=False
    )
    assert section.note == sentence


def test_a_number_has_three_digits():
    """Fails if a figure of an evaluation has other digits than its neighbours, or a small p-value becomes 0."""
    values = {0.87142: "0.871", 1.0: "1.000", 0.0: "0.000", -0.0312: "-0.031", 0.0000123: "1.23e-05", 7: "7"}
    assert {value: formatted(value, DIGITS) for value in values} == values


def test_a_prediction_names_speaker_and_channel():
    """Fails if the speaker of an utterance is lost where the other of speaker and channel is unknown, or another's is taken."""
    table = pa.table(
        {
            "channel": pa.array([None, 0, 1, None], pa.int32()),
            "speaker_id": ["S1", None, "S2", None],
            "speaker": pa.array([None, 4, 5, None]),
        }
    )
    assert speakers_of(table).to_pylist() == ["S1", "4 · channel 0", "S2 · channel 1", None]
    assert speakers_of(table.select(["channel"])).to_pylist() == [None, "channel 0", "channel 1", None]


LABEL_SCORES = pa.map_(pa.string(), pa.float32())


def published_set(folder: Path) -> str:
    """An output with as many clips of each class as the published test set, one in five of them wrong."""
    labels = [name for name, count in TEST_SETS["en", "mean"].items() for _ in range(count)]
    records = [{"id": f"c{n}", "audio": f"/a/{n}.wav", "text": "x", "label": label, "dataset": "ravdess"}
               for n, label in enumerate(labels)]  # fmt: skip
    store = open_store(str(folder / "out"))
    plan = plan_rows(store, folder, records, shard_rows=len(records))
    work = Work(store.root, plan, AudioRoots.parse(("/a",), []))
    (shard,) = plan.shards()
    rows = read_shard(store, shard)
    table = recognised(rows, 0)
    said = ["fear" if n % 5 == 0 else label for n, label in enumerate(rows["manifest_label"].to_pylist())]
    assert table.num_rows == len(said)
    names = list(TEST_SETS["en", "mean"])
    scores = pa.array([[(name, 0.9 if name == label else 0.1) for name in names] for label in said], LABEL_SCORES)
    for name, column in {"label": pa.array(said), "emotion": pa.array(said), "label_scores": scores}.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    assert finish(work, shard, table, {}).won
    publish_plan(store, plan)
    return store.root


def test_the_published_figures_stand_beside_the_same_test_set_alone(tmp_path, monkeypatch, capsys):
    """Fails if ours are not beside the card's where the user says that the set is the card's, or are where nobody did."""
    monkeypatch.setattr("tests.support.outputs.FLAGS", {"partition_by": ""})
    output = published_set(tmp_path)
    read = page_of(tmp_path / "same", output, flags=("--published-test-set",))
    said = capsys.readouterr().out
    table = {row[2]: row for row in read.tables["published-1"]}
    assert list(table) == list(CARD_METRICS)
    right = asked(f"SELECT avg(\"right\"::INT) FROM '{tmp_path}/same/figures/predictions.parquet'")[0][0]
    assert same([table["accuracy"]], [["en", "mean", "accuracy", 0.902870, right, right - 0.902870]])
    (line,) = [line for line in said.splitlines() if line.startswith("this output")]
    result = {row[0]: row for row in read.tables["figures-1"]}
    assert {name: result[name][6] for name in CARD_METRICS} == {name: table[name][3] for name in CARD_METRICS}
    assert f"Published for the same test set: accuracy 0.903 (here {right - 0.902870:+.3f})" in read.text
    ours = json.loads((tmp_path / "same/figures/metrics.json").read_text())["outputs"][0]["published"][0]["ours"]
    assert line.split()[2:] == [f"{100 * ours[name]:.4f}" for name in CARD_METRICS]
    assert np.allclose([row[4] for row in table.values()], list(ours.values()))
    read = page_of(tmp_path / "other", output)
    assert "published-1" not in read.tables and "are of another test set, and are not compared" in read.text
    ((kept,),) = duckdb.sql(f"SELECT count(ours) FROM '{tmp_path}/other/figures/published.parquet'").fetchall()
    assert kept == 0

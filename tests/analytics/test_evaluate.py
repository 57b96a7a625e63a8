"""The evaluation job over real outputs: what it reads, counts, slices, compares and writes. Figures: test_evaluate_metrics.py."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import main
from pipeline.analytics.evaluate.labelled import Truth, read_labelled
from pipeline.analytics.evaluate.results import Evaluation
from pipeline.analytics.evaluate.words import words
from pipeline.dataset.plan import read_shard
from pipeline.schema import EMOTIONS, emotion_of
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from tests.support.outputs import LONG, REJECTED, plan_rows, publish_plan, recognised

CARD = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
ROWS = 80
BOUNDS = {"low", "high"}
GUESSES = {"chance", "majority"}
KEYS = {
    "": {"format", "version", "made_at", "labels", "interval", "resample_by", "resamples", "seed", "outputs", "comparisons",
         "fitted_calibration", "calibration_failure"},
    "outputs": {"output", "mode", "settings", "models", "counts", "overall", "slices", "slices_not_shown", "abstention",
                "published", "warnings", "dimensions"},
    "outputs.counts": {"utterances", "compared", "without_label", "other_labels", "without_prediction", "rejected_with_label",
                       "recordings"},
    "outputs.overall": {"rows", "metrics", "per_class", "confusion", "calibration", "words", "speakers"},
    "outputs.overall.metrics": {"accuracy", "weighted_precision", "weighted_f1", "macro_f1", "uar", "kappa"},
    "outputs.overall.metrics.uar": {"value", *BOUNDS, *GUESSES},
    "outputs.overall.per_class": {"class", "precision", "recall", "f1", "support", "estimates"},
    "outputs.overall.per_class.estimates.f1": {"value", *BOUNDS, *GUESSES},
    "outputs.overall.speakers": {"column", "count", "metrics"},
    "outputs.overall.speakers.metrics.uar": {"mean", "deviation"},
    "outputs.overall.confusion": {"classes", "counts", "shares"},
    "outputs.overall.calibration": {"expected_error", "largest_error", "bins", "log_loss", "log_loss_chance",
                                    "log_loss_majority"},
    "outputs.overall.calibration.bins": {"rows", "confidence", "accuracy", *BOUNDS},
    "outputs.overall.words": {"recordings", "word_error_rate", "words", "substitutions", "deletions", "insertions", *BOUNDS},
    "outputs.slices": {"column", "value", "small", "rows", "metrics", "per_class", "confusion", "calibration", "words",
                       "speakers"},
    "outputs.abstention": {"kept", "thresholds"},
    "outputs.abstention.thresholds": {"min_confidence", "rows", "share", "accuracy"},
    "outputs.published": {"language", "mode", "published", "same_test_set", "why_not", "ours"},
    "comparisons": {"first", "second", "rows", "only_in_first", "only_in_second", "labels_differ", "metrics", "test",
                    "agreement", "largest_score_difference", "words", "dimensions"},
    "comparisons.metrics.accuracy": {"first", "second", "difference", *BOUNDS, *GUESSES},
    "comparisons.test": {"name", "only_first_right", "only_second_right", "p_value", "p_value_holm"},
    "comparisons.words": {"recordings", "first", "second", "difference", *BOUNDS, *GUESSES},
}  # fmt: skip
"""Keys of metrics.json by the path of their object; of a list, its first object counts."""


def records(*, prefix: str = "r", count: int = ROWS) -> list[dict[str, object]]:
    """Rows with labels in the card's words; some without, one with a word that is no class, two that will be rejected."""
    labels: list[str | None] = [CARD[n % 7] for n in range(count)]
    labels[2], labels[3] = None, "calm"
    return [
        {"id": f"{prefix}{n}", "audio": f"/a/{n}.wav", "text": "x", "label": labels[n], "speaker": ("007", "anna")[n % 2],
         "sex": "mf"[n % 2], "reference": "T!" if n % 4 else "the t"}
        for n in range(count)
    ]  # fmt: skip


def output_of(folder: Path, rows: list[dict[str, object]], *, seed: int = 0, published: bool = True) -> str:
    """An output of those rows, committed and published by the real code; labels are chance, and depend on the seed."""
    output = str(folder / "out")
    store = open_store(output)
    plan = plan_rows(store, folder, rows, shard_rows=16)
    work = Work(output, plan, AudioRoots.parse(("/a",), []))
    for shard in plan.shards():
        table = recognised(read_shard(store, shard), seed + shard.number)
        assert finish(work, shard, table, {}, max_denied=1.0).won
    if published:
        publish_plan(store, plan)
    return output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return output_of(tmp_path_factory.mktemp("one"), records())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same rows but ten, with other labels by the model, and one row whose true label is another."""
    rows = records()[:-10]
    rows[20]["label"] = "fear" if rows[20]["label"] != "fear" else "sad"
    return output_of(tmp_path_factory.mktemp("other"), rows, seed=100)


def evaluated(tmp_path: Path, *arguments: str) -> dict:
    assert main([*arguments, "--labels", "label", "--resamples", "200", "--write", str(tmp_path / "ev")]) == 0
    return json.loads((tmp_path / "ev" / "metrics.json").read_text(encoding="utf-8"))


def test_what_is_counted(output, tmp_path, capsys):
    """Fails if rows without a comparable label count, or those that were rejected vanish without a word."""
    found = evaluated(tmp_path, output)["outputs"][0]
    assert found["counts"] == {
        "utterances": ROWS - len(REJECTED) + 2, "compared": ROWS - len(REJECTED) - 2 + 2, "without_label": 1,
        "without_prediction": 0, "other_labels": {"calm": 1}, "rejected_with_label": len(REJECTED),
        "recordings": ROWS - len(REJECTED) - 2,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        "2 labelled recordings were rejected" in printed
        and "'calm' 1" in printed
        and "78 utterances come from 76 recordings" in printed
    )


def test_figures_are_those_of_a_query(output, tmp_path):
    """Fails if labels of different rows meet, or a table says another thing than metrics.json: all against plain SQL."""
    found = evaluated(tmp_path, output)["outputs"][0]
    words_ = ", ".join(f"('{word}', '{emotion_of(word)}')" for word in CARD)
    base = duckdb.connect()
    base.execute(
        f"create table rows as select u.*, e.emotion as truth from read_parquet('{output}/utterances/**/*.parquet', "
        f"hive_partitioning = true, hive_types = {{'speaker': varchar}}) u join (values {words_}) e(word, emotion) "
        "on u.manifest_label = e.word"
    )
    accuracy, count = base.execute("select avg((emotion = truth)::int), count(*) from rows").fetchone()
    assert (
        found["overall"]["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
        and found["overall"]["rows"] == count
    )
    per_speaker = dict(base.execute("select speaker, avg((emotion = truth)::int) from rows group by 1").fetchall())
    slices = {part["value"]: part for part in found["slices"] if part["column"] == "speaker"}
    assert {name: part["metrics"]["accuracy"]["value"] for name, part in slices.items()} == pytest.approx(per_speaker)
    assert set(slices) == {"007", "anna"}  # a partition's value that looks like a number stays what it was
    cells = base.execute("select truth, emotion, count(*) from rows group by all").fetchall()
    table = pq.read_table(tmp_path / "ev" / "confusion.parquet").to_pylist()
    whole = {(row["truth"], row["predicted"]): row["count"] for row in table if row["slice"] == "all" and row["count"]}
    assert whole == {(truth, said): n for truth, said, n in cells}
    figures = pq.read_table(tmp_path / "ev" / "metrics.parquet").to_pylist()
    for part in (found["overall"] | {"column": "all", "value": None}, *found["slices"]):
        for name, figure in part["metrics"].items():
            (row,) = [row for row in figures if (row["slice"], row["value"], row["metric"], row["class"])
                      == (part["column"], part["value"], name, None)]  # fmt: skip
            assert [row[name] for name in ("figure", "low", "high", "chance", "majority")] == list(figure.values())
            assert row["rows"] == part["rows"]
            # the slices of a speaker have no interval
            assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"]
    predictions = pq.read_table(tmp_path / "ev" / "predictions.parquet")
    assert predictions.num_rows == count and np.mean(predictions["right"].to_pylist()) == pytest.approx(accuracy)


def test_reliability_adds_up(output, tmp_path):
    """Fails if a bin counts rows twice, or the calibration error is not the weighted gap of the bins."""
    found = evaluated(tmp_path, output)["outputs"][0]["overall"]
    bins = found["calibration"]["bins"]
    assert sum(each["rows"] for each in bins) == found["rows"]
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in bins)
    gap = sum(each["rows"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / found["rows"]
    assert found["calibration"]["expected_error"] == pytest.approx(gap)
    right = sum(each["rows"] * each["accuracy"] for each in bins) / found["rows"]
    assert right == pytest.approx(found["metrics"]["accuracy"]["value"])


def test_small_slices_are_warned_of(output, tmp_path):
    """Fails if figures of five rows look as good as those of a thousand."""
    found = evaluated(tmp_path, output, "--slices", "speaker,reference,duration,segment_index")["outputs"][0]
    small = {(part["column"], part["value"]) for part in found["slices"] if part["small"]}
    assert small == {("reference", "the t"), ("segment_index", "1"), ("segment_index", "2")}
    (warning,) = [warning for warning in found["warnings"] if "slices have fewer than 30 rows" in warning]
    assert "segment_index 1 (1)" in warning and "speaker" not in warning
    assert {part["value"] for part in found["slices"] if part["column"] == "duration"} == {"1 to 2 s"}


def test_words_are_counted_by_recording(output, tmp_path):
    """Fails if parts of a cut recording are each held against its whole reference, or capitals and commas count."""
    found = evaluated(tmp_path, output)["outputs"][0]["overall"]["words"]
    labelled = read_labelled(output, Truth("label"), ["reference"])
    recordings = set(labelled.column("recording_id"))
    missed = sum(int(name[1:]) % 4 == 0 for name in recordings)
    assert found["recordings"] == len(recordings) and LONG in recordings
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (0, missed, 2)  # "t t t" for "T!"
    assert found["word_error_rate"] == (missed + 2) / (len(recordings) + missed)
    assert found["low"] < found["word_error_rate"] < found["high"]
    (row,) = [row for row in pq.read_table(tmp_path / "ev" / "metrics.parquet").to_pylist()
              if (row["slice"], row["metric"]) == ("all", "word_error_rate")]  # fmt: skip
    assert (row["figure"], row["low"], row["high"]) == (found["word_error_rate"], found["low"], found["high"])


def test_words_as_they_are_counted():
    """Fails if an accent or apostrophe is lost, or punctuation makes an error."""
    assert words("¡Qué día! It’s HE'S, rock-n-roll… 3,5") == [
        "qué",
        "día",
        "it's",
        "he's",
        "rock",
        "n",
        "roll",
        "3",
        "5",
    ]


def test_two_outputs_side_by_side(output, other, tmp_path, capsys):
    """Fails if rows are paired by place instead of id, or sets that differ are compared without a word."""
    (found,) = evaluated(tmp_path, output, other)["comparisons"]
    one, two = (read_labelled(each, Truth("label")) for each in (output, other))
    places = {name: row for row, name in enumerate(two.column("utterance_id"))}
    pairs = [(row, places[name]) for row, name in enumerate(one.column("utterance_id"))
             if name in places and one.truth[row] == two.truth[places[name]]]  # fmt: skip
    right = np.array([[one.predicted[i] == one.truth[i], two.predicted[j] == two.truth[j]] for i, j in pairs])
    assert found["rows"] == len(pairs) and (found["only_in_first"], found["only_in_second"]) == (10, 0)
    assert found["labels_differ"] == 1
    first_alone, second_alone = (int((right[:, a] & ~right[:, 1 - a]).sum()) for a in (0, 1))
    assert (found["test"]["only_first_right"], found["test"]["only_second_right"]) == (first_alone, second_alone)
    assert 0 < found["test"]["p_value"] <= 1
    difference = found["metrics"]["accuracy"]
    assert difference["difference"] == pytest.approx(right[:, 1].mean() - right[:, 0].mean())
    assert difference["low"] <= difference["difference"] <= difference["high"]
    assert (
        "no figure includes the others: 10 only in the first, 1 with different true labels" in capsys.readouterr().out
    )
    assert found["words"]["recordings"] == found["rows"] + 1 - 2 and found["words"]["difference"] == 0
    table = {row["metric"]: row for row in pq.read_table(tmp_path / "ev" / "comparisons.parquet").to_pylist()}
    assert set(table) == {*found["metrics"], "word_error_rate"}
    for name, row in found["metrics"].items():
        assert [table[name][f"figure_{one}"] for one in ("first", "second")] == [row["first"], row["second"]]
        assert [table[name][each] for each in ("difference", "low", "high")] == [
            row[e] for e in ("difference", "low", "high")
        ]
        assert table[name]["p_value"] == (found["test"]["p_value"] if name == "accuracy" else None)


def test_an_output_against_itself_is_no_different(output, tmp_path):
    """Fails if the paired test or interval finds a difference where there is none."""
    (found,) = evaluated(tmp_path, output, output)["comparisons"]
    assert found["test"]["p_value"] == 1.0 and found["agreement"] == 1.0 and found["largest_score_difference"] == 0.0
    assert all((row["difference"], row["low"], row["high"]) == (0, 0, 0) for row in found["metrics"].values())


def test_speakers_are_resampled_by_default(output, tmp_path):
    """Fails if rows of a speaker are drawn one by one, which hides how speakers differ, or one speaker has an interval."""
    by_recording = evaluated(tmp_path / "r", output, "--resample-by", "recording_id")["outputs"][0]
    by_speaker = evaluated(tmp_path / "s", output)["outputs"][0]
    figure = by_speaker["overall"]["metrics"]["accuracy"]
    assert figure["value"] == by_recording["overall"]["metrics"]["accuracy"]["value"]
    parts = {part["value"]: part["metrics"]["accuracy"] for part in by_speaker["slices"] if part["column"] == "speaker"}
    assert (figure["low"], figure["high"]) == pytest.approx(sorted(part["value"] for part in parts.values()))
    assert [part["low"] for part in parts.values()] == [None, None]
    assert "the intervals are of 2 values of speaker, so they are too narrow" in by_speaker["warnings"]
    spread = by_speaker["overall"]["speakers"]
    values = [part["value"] for part in parts.values()]
    assert (spread["column"], spread["count"]) == ("speaker", 2)
    assert spread["metrics"]["accuracy"] == pytest.approx(
        {"mean": np.mean(values), "deviation": np.std(values, ddof=1)}
    )


def test_an_unfinished_output_says_so(tmp_path):
    """Fails if figures of half a run look like those of all of it."""
    output = output_of(tmp_path, records(count=40), published=False)
    assert "1 run(s) are not finished" in evaluated(tmp_path, output)["outputs"][0]["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--labels", "lable"], "has no column 'lable'; did you mean 'label'"),
        (["--labels", "reference"], "is one of anger"),
        (["--labels", "label", "--slices", "speeker"], "--slices speeker: "),
        (["--labels", "label", "--references", "said"], "--references said: "),
        (["--labels", "label", "--resample-by", "speakr"], "did you mean 'speaker'"),
        (["--labels", "label", "--fit-calibration", "{tmp}/taken.json"], "already exists"),
        (["--labels", "label", "--write", "{tmp}/taken"], "already exists"),
    ],
)
def test_refused_before_any_work(output, tmp_path, capsys, arguments, sentence):
    """Fails if a wrong name gives figures of something else, or a result of before is overwritten."""
    (tmp_path / "taken").mkdir()
    for name in ("taken.json", "taken/metrics.json"):
        (tmp_path / name).write_text("mine")
    assert main([output, *(each.format(tmp=tmp_path) for each in arguments)]) == 2
    assert sentence in capsys.readouterr().err
    assert {path.read_text() for path in tmp_path.rglob("*.json")} == {"mine"}


def test_no_output_there(tmp_path, capsys):
    """Fails if a mistyped output is evaluated as an empty one."""
    assert main([str(tmp_path), "--labels", "label"]) == 2
    assert "no output of this pipeline exists" in capsys.readouterr().err


def test_the_whole_is_one_plain_document(output, tmp_path, capsys):
    """Fails if --json prints anything but the document, or it holds NaN, which no other reader takes."""
    assert main([output, "--labels", "label", "--resamples", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["outputs"][0]["overall"]["metrics"]["accuracy"]["low"] is None
    assert set(found["outputs"][0]["overall"]["confusion"]["classes"]) <= set(EMOTIONS)


def object_at(document: dict, path: str) -> dict:
    for key in filter(None, path.split(".")):
        document = document[key]
        document = document[0] if isinstance(document, list) else document
    return document


def test_the_document_keeps_its_keys(output, other, tmp_path):
    """Fails if a key of metrics.json, which programs read, is renamed, dropped or added without notice."""
    document = evaluated(tmp_path, output, other)
    assert {path: set(object_at(document, path)) for path in KEYS} == KEYS


def test_the_document_is_read_as_it_was_written(output, other, tmp_path):
    """Fails if a field of metrics.json is lost, or renamed on one side, when a report reads it."""
    document = evaluated(tmp_path, output, other)
    assert Evaluation.of((tmp_path / "ev" / "metrics.json").read_bytes()).document() == document

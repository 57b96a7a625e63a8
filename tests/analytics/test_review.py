"""Utterances that people review, and their corrections read back by the evaluation."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from jobs.evaluate import main as evaluate
from jobs.review import main
from pipeline.analytics.evaluate.labelled import Truth, read_labelled
from pipeline.analytics.review import CORRECTED, Order, chosen, read_corrections, review_file
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS
from pipeline.storage.store import open_store
from tests.support.outputs import finished_output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("review")
    finished_output(str(folder / "out"), folder / "m")
    return str(folder / "out")


def utterances(output: str) -> list[dict[str, object]]:
    return ds.dataset(f"{output}/utterances", partitioning="hive").to_table().to_pylist()


def test_the_least_certain_come_first(output, tmp_path, capsys):
    """Fails if others than those with the smallest margins are exported, a value is lost, or a file is replaced unasked."""
    file = tmp_path / "review.csv"
    assert main([output, "--uncertain", "5", "--to", str(file)]) == 0
    assert "5 utterances to review written" in capsys.readouterr().out
    found = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    expected = sorted(utterances(output), key=lambda row: (row["margin"], row["utterance_id"]))[:5]
    assert [row["utterance_id"] for row in found] == [row["utterance_id"] for row in expected]
    for row, original in zip(found, expected, strict=True):
        assert (row["audio"], row["label"], row["text"]) == (original["audio"], original["label"], original["text"])
        assert float(row["margin"]) == pytest.approx(original["margin"], rel=1e-5) and row[CORRECTED] == ""
    assert main([output, "--uncertain", "5", "--to", str(file)]) == 2 and "already exists" in capsys.readouterr().err
    assert main([output, "--uncertain", "0", "--to", str(tmp_path / "none.csv")]) == 2


def test_a_random_sample_is_the_same_again(output):
    """Fails if a seed does not decide the sample, or every sample is the same."""
    rows = finished_rows(open_store(output))
    samples = [
        [row["utterance_id"] for row in chosen(rows, Order.RANDOM, 6, seed=seed).to_pylist()] for seed in (1, 1, 2, 3)
    ]
    assert samples[0] == samples[1] and len({tuple(sample) for sample in samples}) == 3
    assert {*samples[0]} <= {row["utterance_id"] for row in utterances(output)}


def reviewed(table, form: str, corrections: list[str]) -> tuple[str, str]:
    """Return the ending and the content of a file as a person leaves it, in one of the forms that are read."""
    if form.startswith("csv"):
        rows = list(csv.DictReader(io.StringIO(review_file(table, "x.csv").decode())))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], delimiter=";" if form == "csv of a spreadsheet" else ",")
        writer.writeheader()
        writer.writerows({**row, CORRECTED: f" {each} "} for row, each in zip(rows, corrections, strict=True))
        return ".csv", ("\ufeff" if form == "csv of a spreadsheet" else "") + text.getvalue()
    tasks = json.loads(review_file(table, "x.json"))
    if form == "JSON-MIN":
        return ".json", json.dumps(
            [{**task["data"], CORRECTED: each} for task, each in zip(tasks, corrections, strict=True)]
        )
    for task, each in zip(tasks, corrections, strict=True):
        [result] = task["predictions"][0]["result"]
        kept = {"was_cancelled": False, "result": [{**result, "value": {"choices": [each]}}]}
        task["annotations"] = [{"was_cancelled": True, "result": [result]}, kept] if each else []
    return ".json", json.dumps(tasks)


@pytest.mark.parametrize("form", ["csv", "csv of a spreadsheet", "JSON", "JSON-MIN"])
def test_corrections_are_read_back(output, tmp_path, form, capsys):
    """Fails if a correction is lost, given to another utterance, or an utterance without one is compared."""
    table = chosen(finished_rows(open_store(output)), Order.RANDOM, 8)
    corrections = [EMOTIONS[n % 7] if n % 4 else "" for n in range(8)]
    ending, content = reviewed(table, form, corrections)
    file = tmp_path / f"reviewed{ending}"
    file.write_text(content, encoding="utf-8")
    wanted = {id_: each for id_, each in zip(table["utterance_id"].to_pylist(), corrections, strict=True) if each}
    assert read_corrections(str(file)) == wanted
    labelled = read_labelled(output, Truth(str(file)))
    truth = [labelled.classes[number] for number in labelled.truth]
    assert dict(zip(labelled.column("utterance_id"), truth, strict=True)) == wanted
    assert evaluate([output, "--labels", str(file), "--resamples", "0"]) == 0 and "accuracy" in capsys.readouterr().out


def test_a_text_is_no_formula_for_a_spreadsheet(output):
    """Fails if a spreadsheet would run what somebody said, or an id or a number changes by its being kept from it."""
    table = chosen(finished_rows(open_store(output)), Order.RANDOM, 1)
    said = table.set_column(table.schema.get_field_index("text"), "text", [["=HYPERLINK(1)"]])
    said = said.set_column(said.schema.get_field_index("utterance_id"), "utterance_id", [["-1#0000"]])
    [row] = csv.DictReader(io.StringIO(review_file(said, "x.csv").decode()))
    assert row["text"] == "'=HYPERLINK(1)" and row["utterance_id"] == "'-1#0000" and float(row["start_s"]) >= 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "utterance_id,corrected\nr1#0000,\n", "has no correction"),
        ("a.csv", "id,emotion\nr1#0000,joy\n", "is not a reviewed file"),
        ("a.csv", "utterance_id,corrected\nr1#0000,joy\nr1#0000,fear\n", "decide for one of them"),
        ("a.json", "[5]", "is not a reviewed file"),
        ("a.json", "{", "is not a reviewed file"),
        ("a.csv", "utterance_id,corrected\nother#0000,joy\n", "was another output reviewed"),
    ],
)
def test_what_is_no_review_is_refused(output, tmp_path: Path, name, content, message):
    """Fails if a wrong file gives a traceback, or figures of nothing."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_labelled(output, Truth(str(tmp_path / name)))

"""Utterances for people to review, as CSV or as tasks for Label Studio; and their corrections, read back.

In CSV the column `corrected` is empty, to be filled in with an emotion or a label of the model. Label Studio gets the model's
label as a prediction; its exports as JSON and JSON-MIN are read back.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import pyarrow as pa

from pipeline.dataset.reader import Rows, asking
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.fetch import read_text

CORRECTED = "corrected"
"""Column of the corrections, and name of the choices in Label Studio."""
ENDINGS = (".csv", ".json")
_COLUMNS = ("utterance_id", "audio", "channel", "start_s", "end_s", "language", "text", "label", "emotion", "confidence",
            "margin", "model")  # fmt: skip


class Order(StrEnum):
    """Which utterances are reviewed: those with the smallest margins, or a random sample."""

    UNCERTAIN = "uncertain"
    RANDOM = "random"


def chosen(rows: Rows, order: Order, number: int, *, seed: int = 0) -> pa.Table:
    """Choose labelled utterances. The same call chooses the same ones, and of a grown output a similar sample.

    Args:
        order: by margin, smallest first, or by a hash of id and seed.
    """
    names = [name for name in _COLUMNS if name in rows.schema().names]
    key = {Order.UNCERTAIN: "margin", Order.RANDOM: f"sha256(utterance_id || '#{seed}')"}[order]
    with asking(utterances=rows.utterances()) as connection:
        return connection.sql(
            f"SELECT {', '.join(names)} FROM utterances WHERE label IS NOT NULL ORDER BY {key}, utterance_id LIMIT {number}"
        ).to_arrow_table()


def review_file(table: pa.Table, uri: str) -> bytes:
    """Return the content of a file for review: CSV, or JSON for Label Studio, by the ending of its name."""
    rows = table.to_pylist()
    if uri.endswith(".json"):
        return json.dumps([_task(row) for row in rows], indent=1, ensure_ascii=False).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*table.column_names, CORRECTED], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} | {CORRECTED: ""} for row in rows)
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Return a value for CSV. Spreadsheets run a text that begins with one of these characters as a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _task(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task of Label Studio with the model's label as its prediction."""
    choice = {"choices": [row["emotion"] or row["label"]]}
    result = {"from_name": CORRECTED, "to_name": "audio", "type": "choices", "value": choice}
    prediction = {"model_version": row["model"], "score": row["confidence"], "result": [result]}
    return {"data": dict(row), "predictions": [prediction]}


def read_corrections(uri: str) -> dict[str, str]:
    """Read a reviewed file: the corrected label of each utterance that has one.

    Raises: ConfigError for a file that cannot be read, or has two corrections of one utterance that differ.
    """
    text, name = read_text(uri), without_query(uri)
    try:
        pairs = _from_json(json.loads(text)) if uri.endswith(".json") else _from_csv(text)
        corrections: dict[str, str] = {}
        for utterance, correction in pairs:
            if corrections.setdefault(utterance, correction) != correction:
                raise ConfigError(
                    f"{name} corrects {utterance} to {corrections[utterance]!r} and to {correction!r}; decide for one of them"
                )
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigError(
            f"{name} is not a reviewed file of jobs.review: {type(error).__name__}: {error}. It needs the columns utterance_id "
            f"and {CORRECTED}, or is an export of Label Studio as JSON or JSON-MIN"
        ) from error
    if not corrections:
        raise ConfigError(f"{name} has no correction: fill in the column {CORRECTED}")
    return corrections


def _from_csv(text: str) -> Iterable[tuple[str, str]]:
    # spreadsheets of some countries separate by semicolons
    dialect = csv.Sniffer().sniff(text.partition("\n")[0], delimiters=",;\t")
    for row in csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), dialect=dialect):
        if correction := (row[CORRECTED] or "").strip():
            yield row["utterance_id"].removeprefix("'"), correction


def _from_json(tasks: list[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for task in tasks:
        if "data" not in task:  # JSON-MIN
            choices = task.get(CORRECTED) or []
            for choice in (
                choices["choices"] if isinstance(choices, dict) else [choices] if isinstance(choices, str) else choices
            ):
                yield task["utterance_id"], choice
            continue
        for annotation in task.get("annotations", []):
            if annotation.get("was_cancelled"):
                continue
            for result in annotation["result"]:
                if result.get("from_name") == CORRECTED:
                    for choice in result["value"]["choices"]:
                        yield task["data"]["utterance_id"], choice

"""Tables of an evaluation in long format, so that queries and plots need no nested JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.results import Comparison, Confusion, Evaluation, Measured, Published
from pipeline.dataset.plan import parquet_bytes
from pipeline.schema import EMOTIONS

_WHERE = [pa.field("output", pa.string()), pa.field("slice", pa.string()), pa.field("value", pa.string())]
SCHEMAS = {
    "metrics": pa.schema([
        *_WHERE, pa.field("rows", pa.int64()), pa.field("metric", pa.string()), pa.field("class", pa.string()),
        pa.field("figure", pa.float64()), pa.field("low", pa.float64()), pa.field("high", pa.float64()),
    ]),
    "confusion": pa.schema([
        *_WHERE, pa.field("truth", pa.string()), pa.field("predicted", pa.string()), pa.field("count", pa.int64()),
        pa.field("share", pa.float64()),
    ]),
    "reliability": pa.schema([
        *_WHERE, pa.field("low", pa.float64()), pa.field("high", pa.float64()), pa.field("rows", pa.int64()),
        pa.field("confidence", pa.float64()), pa.field("accuracy", pa.float64()),
    ]),
    "abstention": pa.schema([
        pa.field("output", pa.string()), pa.field("min_confidence", pa.float64()), pa.field("rows", pa.int64()),
        pa.field("share", pa.float64()), pa.field("accuracy", pa.float64()),
    ]),
    "published": pa.schema([
        pa.field("output", pa.string()), pa.field("language", pa.string()), pa.field("mode", pa.string()),
        pa.field("metric", pa.string()), pa.field("published", pa.float64()), pa.field("ours", pa.float64()),
    ]),
    "comparisons": pa.schema([
        pa.field("first", pa.string()), pa.field("second", pa.string()), pa.field("metric", pa.string()),
        pa.field("figure_first", pa.float64()), pa.field("figure_second", pa.float64()), pa.field("difference", pa.float64()),
        pa.field("low", pa.float64()), pa.field("high", pa.float64()), pa.field("test", pa.string()),
        pa.field("only_first_right", pa.int64()), pa.field("only_second_right", pa.int64()), pa.field("p_value", pa.float64()),
    ]),
    "predictions": pa.schema([
        pa.field("output", pa.string()), pa.field("utterance_id", pa.string()), pa.field("truth", pa.string()),
        pa.field("predicted", pa.string()), pa.field("confidence", pa.float64()), pa.field("right", pa.bool_()),
        pa.field("abstained", pa.bool_()),
    ]),
}  # fmt: skip
"""Schemas of the tables.

The slice `all` is the whole output. `class` is null for metrics over all classes. `ours` is null when the test set is
not the published one. The columns from `test` on are null except for accuracy, the only metric that is tested."""


def tables_of(evaluation: Evaluation, outputs: Sequence[Labelled]) -> dict[str, bytes]:
    """Return the tables as Parquet files, by file name."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS if name != "predictions"}
    for output in evaluation.outputs:
        whole: tuple[str, str | None, Measured] = ("all", None, output.overall)
        for column, value, part in (whole, *((each.column, each.value, each) for each in output.slices)):
            where = {"output": output.output, "slice": column, "value": value}
            rows["metrics"] += [{**where, "rows": part.rows, **figure} for figure in _figures(part)]
            rows["confusion"] += [{**where, **cell} for cell in _cells(part.confusion)]
            rows["reliability"] += [{**where, **asdict(each)} for each in part.calibration.bins]
        rows["abstention"] += [{"output": output.output, **asdict(each)} for each in output.abstention.thresholds]
        rows["published"] += [{"output": output.output, **each} for row in output.published for each in _beside(row)]
    rows["comparisons"] = [row for comparison in evaluation.comparisons for row in _differences(comparison)]
    tables = {name: pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]) for name in rows}
    tables["predictions"] = pa.concat_tables(map(_predictions, outputs))
    return {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()}


def _figures(part: Measured) -> Iterator[dict[str, Any]]:
    for name, figure in part.metrics.items():
        yield {"metric": name, "figure": figure.value, "low": figure.low, "high": figure.high}
    for row in part.per_class:
        for name, value in (
            ("precision", row.precision),
            ("recall", row.recall),
            ("f1", row.f1),
            ("support", row.support),
        ):
            yield {"metric": name, "class": row.name, "figure": value}
    calibration = part.calibration
    yield {"metric": "calibration_expected_error", "figure": calibration.expected_error}
    yield {"metric": "calibration_largest_error", "figure": calibration.largest_error}
    yield {"metric": "calibration_log_loss", "figure": calibration.log_loss}
    if part.words:
        words = part.words
        yield {"metric": "word_error_rate", "figure": words.word_error_rate, "low": words.low, "high": words.high}


def _beside(row: Published) -> Iterator[dict[str, Any]]:
    for name, figure in row.published.items():
        ours = None if row.ours is None else row.ours[name]
        yield {"language": row.language, "mode": row.mode, "metric": name, "published": figure, "ours": ours}


def _differences(comparison: Comparison) -> Iterator[dict[str, Any]]:
    words = {"word_error_rate": comparison.words} if comparison.words else {}
    for name, row in {**(comparison.metrics or {}), **words}.items():
        tested: dict[str, Any] = asdict(comparison.test) if comparison.test and name == "accuracy" else {}
        yield {
            "first": comparison.first, "second": comparison.second, "metric": name, "figure_first": row.first,
            "figure_second": row.second, "difference": row.difference, "low": row.low, "high": row.high,
            "test": tested.pop("name", None), **tested,
        }  # fmt: skip


def _cells(confusion: Confusion) -> Iterator[dict[str, Any]]:
    for truth, counts, shares in zip(confusion.classes, confusion.counts, confusion.shares, strict=True):
        for predicted, count, share in zip(confusion.classes, counts, shares, strict=True):
            yield {"truth": truth, "predicted": predicted, "count": count, "share": share}


def _predictions(labelled: Labelled) -> pa.Table:
    columns = {
        "output": pa.array([labelled.output] * len(labelled), pa.string()),
        "utterance_id": labelled.table["utterance_id"],
        "truth": pa.array([EMOTIONS[number] for number in labelled.truth], pa.string()),
        "predicted": pa.array([EMOTIONS[number] for number in labelled.predicted], pa.string()),
        "confidence": pa.array(labelled.confidence),
        "right": pa.array(labelled.truth == labelled.predicted),
        "abstained": pa.array(labelled.abstained),
    }
    return pa.table(columns, schema=SCHEMAS["predictions"])

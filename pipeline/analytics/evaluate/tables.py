"""Tables of an evaluation in long format, so that queries and plots need no nested JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analytics.evaluate.bootstrap import SPEAKER
from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.results import (
    Comparison,
    Confusion,
    Difference,
    Dimension,
    DimensionFigures,
    Estimate,
    Evaluation,
    Measured,
    OutputResult,
    Published,
    Speakers,
)
from pipeline.config.columns import SPEAKER_ID
from pipeline.dataset.plan import parquet_bytes

Row = dict[str, Any]
_WHERE = [pa.field("output", pa.string()), pa.field("slice", pa.string()), pa.field("value", pa.string())]
_BASELINES = [pa.field("chance", pa.float64()), pa.field("majority", pa.float64())]
SCHEMAS = {
    "metrics": pa.schema(
        [
            *_WHERE,
            pa.field("rows", pa.int64()),
            pa.field("metric", pa.string()),
            pa.field("class", pa.string()),
            pa.field("figure", pa.float64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            *_BASELINES,
        ]
    ),
    "dimensions": pa.schema(
        [
            *_WHERE,
            pa.field("dimension", pa.string()),
            pa.field("rows", pa.int64()),
            pa.field("metric", pa.string()),
            pa.field("figure", pa.float64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            *_BASELINES,
        ]
    ),
    "speakers": pa.schema(
        [
            *_WHERE,
            pa.field("dimension", pa.string()),
            pa.field("speakers", pa.int64()),
            pa.field("metric", pa.string()),
            pa.field("mean", pa.float64()),
            pa.field("deviation", pa.float64()),
        ]
    ),
    "confusion": pa.schema(
        [
            *_WHERE,
            pa.field("truth", pa.string()),
            pa.field("predicted", pa.string()),
            pa.field("count", pa.int64()),
            pa.field("share", pa.float64()),
        ]
    ),
    "reliability": pa.schema(
        [
            *_WHERE,
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            pa.field("rows", pa.int64()),
            pa.field("confidence", pa.float64()),
            pa.field("accuracy", pa.float64()),
        ]
    ),
    "abstention": pa.schema(
        [
            pa.field("output", pa.string()),
            pa.field("min_confidence", pa.float64()),
            pa.field("rows", pa.int64()),
            pa.field("share", pa.float64()),
            pa.field("accuracy", pa.float64()),
        ]
    ),
    "published": pa.schema(
        [
            pa.field("output", pa.string()),
            pa.field("language", pa.string()),
            pa.field("mode", pa.string()),
            pa.field("metric", pa.string()),
            pa.field("published", pa.float64()),
            pa.field("ours", pa.float64()),
        ]
    ),
    "comparisons": pa.schema(
        [
            pa.field("first", pa.string()),
            pa.field("second", pa.string()),
            pa.field("metric", pa.string()),
            pa.field("figure_first", pa.float64()),
            pa.field("figure_second", pa.float64()),
            pa.field("difference", pa.float64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            pa.field("test", pa.string()),
            pa.field("only_first_right", pa.int64()),
            pa.field("only_second_right", pa.int64()),
            pa.field("p_value", pa.float64()),
            pa.field("p_value_holm", pa.float64()),
            pa.field("dimension", pa.string()),
            *_BASELINES,
        ]
    ),
    "predictions": pa.schema(
        [
            pa.field("output", pa.string()),
            pa.field("utterance_id", pa.string()),
            pa.field("truth", pa.string()),
            pa.field("predicted", pa.string()),
            pa.field("confidence", pa.float64()),
            pa.field("right", pa.bool_()),
            pa.field("abstained", pa.bool_()),
            pa.field("recording_id", pa.string()),
            pa.field("start_s", pa.float64()),
            pa.field("end_s", pa.float64()),
            pa.field("speaker", pa.string()),
        ]
    ),
}
"""Schemas of the tables.

The slice `all` is the whole output. `class` is null for metrics over all classes. `ours` is null when the test set is
not the published one. The columns from `test` to `p_value_holm` are null except for accuracy, the only metric that is
tested. `dimension` is null for figures of classes. `chance` and `majority` are the baselines of `results.Estimate`. The
`speaker` of a prediction names the channel too; it is null where neither is known."""


def tables_of(evaluation: Evaluation, outputs: Sequence[Labelled]) -> dict[str, bytes]:
    """Return the tables as Parquet files, by file name."""
    rows: dict[str, list[Row]] = {name: [] for name in SCHEMAS if name != "predictions"}
    for output in evaluation.outputs:
        for where, part in _parts(output):
            rows["metrics"] += [{**where, "rows": part.rows, **figure} for figure in _figures(part)]
            rows["confusion"] += [{**where, **cell} for cell in _cells(part.confusion)]
            rows["reliability"] += [{**where, **asdict(each)} for each in part.calibration.bins]
            rows["speakers"] += [{**where, **each} for each in _speakers(part.speakers)]
        for each in output.dimensions:
            for where, figures in _dimension_parts(output, each):
                rows["dimensions"] += [
                    {**where, "rows": figures.rows, **_estimate(name, figure)}
                    for name, figure in figures.metrics.items()
                ]
                rows["speakers"] += [{**where, **each} for each in _speakers(figures.speakers)]
        thresholds = output.abstention.thresholds if output.abstention else ()
        rows["abstention"] += [{"output": output.output, **asdict(each)} for each in thresholds]
        rows["published"] += [{"output": output.output, **each} for row in output.published for each in _beside(row)]
    rows["comparisons"] = [row for comparison in evaluation.comparisons for row in _differences(comparison)]
    tables = {name: pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]) for name in rows}
    tables["predictions"] = pa.concat_tables(map(_predictions, outputs))
    return {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()}


def _parts(output: OutputResult) -> Iterator[tuple[Row, Measured]]:
    if output.overall:
        yield {"output": output.output, "slice": "all", "value": None}, output.overall
    for part in output.slices:
        yield {"output": output.output, "slice": part.column, "value": part.value}, part


def _dimension_parts(output: OutputResult, dimension: Dimension) -> Iterator[tuple[Row, DimensionFigures]]:
    named: Row = {"output": output.output, "dimension": dimension.dimension}
    yield {**named, "slice": "all", "value": None}, dimension.overall
    for part in dimension.slices:
        yield {**named, "slice": part.column, "value": part.value}, part


def _estimate(metric: str, figure: Estimate) -> Row:
    figures = asdict(figure)
    return {"metric": metric, "figure": figures.pop("value"), **figures}


def _figures(part: Measured) -> Iterator[Row]:
    for name, figure in part.metrics.items():
        yield _estimate(name, figure)
    for row in part.per_class:
        for name, figure in row.estimates.items():
            yield {"class": row.name, **_estimate(name, figure)}
        yield {"metric": "support", "class": row.name, "figure": row.support}
    calibration = part.calibration
    yield {"metric": "calibration_expected_error", "figure": calibration.expected_error}
    yield {"metric": "calibration_largest_error", "figure": calibration.largest_error}
    yield {
        "metric": "calibration_log_loss",
        "figure": calibration.log_loss,
        "chance": calibration.log_loss_chance,
        "majority": calibration.log_loss_majority,
    }
    if part.words:
        words = part.words
        yield {"metric": "word_error_rate", "figure": words.word_error_rate, "low": words.low, "high": words.high}


def _speakers(speakers: Speakers | None) -> Iterator[Row]:
    if speakers:
        for name, spread in speakers.metrics.items():
            yield {"speakers": speakers.count, "metric": name, "mean": spread.mean, "deviation": spread.deviation}


def _beside(row: Published) -> Iterator[Row]:
    for name, figure in row.published.items():
        ours = None if row.ours is None else row.ours[name]
        yield {"language": row.language, "mode": row.mode, "metric": name, "published": figure, "ours": ours}


def _differences(comparison: Comparison) -> Iterator[Row]:
    outputs = {"first": comparison.first, "second": comparison.second}
    words = {"word_error_rate": comparison.words} if comparison.words else {}
    for name, row in {**(comparison.metrics or {}), **words}.items():
        tested: Row = asdict(comparison.test) if comparison.test and name == "accuracy" else {}
        yield {**outputs, "metric": name, **_difference(row), "test": tested.pop("name", None), **tested}
    for each in comparison.dimensions:
        for name, row in each.metrics.items():
            yield {**outputs, "metric": name, "dimension": each.dimension, **_difference(row)}


def _difference(row: Difference) -> Row:
    figures = asdict(row)
    return {"figure_first": figures.pop("first"), "figure_second": figures.pop("second"), **figures}


def _cells(confusion: Confusion) -> Iterator[Row]:
    for truth, counts, shares in zip(confusion.classes, confusion.counts, confusion.shares, strict=True):
        for predicted, count, share in zip(confusion.classes, counts, shares, strict=True):
            yield {"truth": truth, "predicted": predicted, "count": count, "share": share}


def _predictions(labelled: Labelled) -> pa.Table:
    columns = {
        "output": pa.array([labelled.output] * len(labelled), pa.string()),
        "utterance_id": labelled.table["utterance_id"],
        "truth": pa.array([labelled.classes[number] for number in labelled.truth], pa.string()),
        "predicted": pa.array([labelled.classes[number] for number in labelled.predicted], pa.string()),
        "confidence": pa.array(labelled.confidence),
        "right": pa.array(labelled.truth == labelled.predicted),
        "abstained": pa.array(labelled.abstained),
        **{name: labelled.table[name] for name in ("recording_id", "start_s", "end_s")},
        "speaker": speakers_of(labelled.table),
    }
    return pa.table(columns, schema=SCHEMAS["predictions"])


def speakers_of(table: pa.Table) -> pa.Array:
    """Return who speaks in each row, and in which channel, as `speaker_sql` of reports does."""
    table = table.combine_chunks()
    names = [name for name in (SPEAKER_ID, SPEAKER) if name in table.column_names]
    speakers = pc.coalesce(pa.nulls(table.num_rows, pa.string()), *[table[name].cast(pa.string()) for name in names])
    channels = pc.binary_join_element_wise("channel ", table["channel"].cast(pa.string()), "")
    both = pc.binary_join_element_wise(speakers, channels, " \N{MIDDLE DOT} ")
    return pc.coalesce(both, speakers, channels)

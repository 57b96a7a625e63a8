"""Outcome of a stress test, read from its folder: one plain document, tables, and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.analytics.evaluate.bootstrap import INTERVAL
from pipeline.analytics.stress.clips import CLIPS, CONDITION, FORMAT, LEVEL, RECORDING, REJECTS, Rows
from pipeline.analytics.stress.conditions import CLEAN, CONDITIONS, Variant
from pipeline.analytics.stress.results import (
    DIMENSIONS,
    UAR,
    Truth,
    class_of,
    clean_uar,
    compare,
    predictions_of,
    predictions_table,
    without_strangers,
)
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.reader import finished_rows, reading
from pipeline.errors import ConfigError, did_you_mean
from pipeline.redaction import without_query
from pipeline.schema import passthrough_name
from pipeline.storage.store import Store, open_store

RUN = "run"
"""Folder of the job's output below that of the test."""
_SPEAKER = "speaker"
_FEW = 30
"""Number of clips below which figures are mostly chance."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the comparison.

    Attributes:
        labels: manifest column with the true labels, or None to compare flips and dimensions only.
        resample_by: column whose values the bootstrap draws; None for `speaker` where the manifest has it, else clips.
        resamples: number of bootstrap resamples; 0 for no intervals.
        seed: of the degradations and of the bootstrap.
    """

    labels: str | None
    resample_by: str | None
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a test: a document of numbers, strings, lists and mappings, and its tables."""

    document: dict[str, Any]
    table: pa.Table
    predictions: pa.Table


def outcome_of(store: Store, rows: Rows, variants: Sequence[Variant], options: Options) -> Outcome:
    """Read the run of a test and compare its conditions.

    Raises: ConfigError for a missing column, or when the clean run has no prediction.
    """
    tested = set(_table(store, CLIPS)[RECORDING].to_pylist())
    kept = rows.table.filter(pa.array([name in tested for name in rows.table["recording_id"].to_pylist()]))
    truth, drawn_by = truth_of(kept, options)
    finished = finished_rows(open_store(f"{store.root}/{RUN}"))
    with reading():
        utterances = finished.utterances()
        wanted = [RECORDING, CONDITION, LEVEL, "label", "model", "text_source", *DIMENSIONS]
        annotated = utterances.to_table(columns=[name for name in wanted if name in utterances.schema.names])
        refused = finished.rejects().to_table(columns=[RECORDING, CONDITION, LEVEL, "reason"])
    predictions = predictions_of(truth, annotated, refused)
    truth, strangers = without_strangers(truth, predictions)
    table = compare(truth, predictions, variants, resamples=options.resamples, seed=options.seed)
    reasons = Counter(_table(store, REJECTS)["reason"].to_pylist())
    document = {
        "format": FORMAT,
        "version": __version__,
        "folder": without_query(store.root),
        "labels": options.labels,
        "seed": options.seed,
        "resamples": options.resamples,
        "resample_by": drawn_by,
        "interval": INTERVAL,
        "mode": finished.plans[-1].settings.mode,
        "models": sorted(set(annotated["model"].drop_null().to_pylist())),
        "clips": len(truth.ids),
        "groups": len(set(truth.groups.tolist())),
        "rejected_before": dict(sorted(reasons.items())),
        "other_labels": strangers,
        "clean_uar": clean_uar(truth, predictions, resamples=options.resamples, seed=options.seed),
        "texts_given": _texts_given(annotated) if finished.plans[-1].settings.mode != "audio" else 0,
        "results": table.to_pylist(),
    }
    document["warnings"] = list(_warnings(document))
    return Outcome(document, table, predictions_table(truth, predictions, variants))


def _texts_given(annotated: pa.Table) -> int:
    rows = annotated.select([CONDITION, "text_source"]).to_pylist()
    return sum(row[CONDITION] == CLEAN and row["text_source"] == "manifest" for row in rows)


def _table(store: Store, key: str) -> pa.Table:
    with store.open(key) as file:
        return pq.read_table(file)


def truth_of(rows: pa.Table, options: Options) -> tuple[Truth, str]:
    """Return the labels, groups and dimensions of manifest rows, and the column that the bootstrap draws by.

    Raises: ConfigError for a column that does not exist, and for labels that are all missing.
    """
    names = rows.column_names
    labels = None
    if options.labels is not None:
        labels = tuple(map(class_of, rows[_column("--labels", options.labels, names)].to_pylist()))
        if not any(labels):
            raise ConfigError(f"--labels {options.labels}: no clip has a label")
    if options.resample_by is not None:
        drawn_by = _column("--resample-by", options.resample_by, names)
    else:
        drawn_by = _SPEAKER if _SPEAKER in names and rows[_SPEAKER].null_count < len(rows) else "recording_id"
    dimensions = {name: _numbers(rows[name]) for name in DIMENSIONS if name in names and _is_number(rows[name].type)}
    truth = Truth(tuple(rows["recording_id"].to_pylist()), labels, _groups(rows[drawn_by].to_pylist()), dimensions)
    return truth, drawn_by


def _column(option: str, name: str, names: Sequence[str]) -> str:
    for column in (passthrough_name(name, SCHEMA_VERSION), name):
        if column in names:
            return column
    known = [each.removeprefix("manifest_") for each in names]
    raise ConfigError(f"{option} {name}: the manifest has no such column{did_you_mean(name, known)}")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _groups(values: Sequence[object]) -> NDArray[np.int64]:
    """Number the groups; a clip without a value is a group of its own."""
    numbers: dict[object, int] = {}
    keys = [(place,) if value is None else str(value) for place, value in enumerate(values)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _warnings(document: Mapping[str, Any]) -> Iterator[str]:
    results = document["results"]
    if document["rejected_before"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in document["rejected_before"].items())
        count = sum(document["rejected_before"].values())
        rows = "1 row of the manifest has" if count == 1 else f"{count:,} rows of the manifest have"
        yield f"{rows} no clip ({reasons}); see {REJECTS}"
    rejected = {place_of(row): row["rejected"] for row in results if row["rejected"]}
    if rejected:
        named = ", ".join(f"{place} {count:,}" for place, count in rejected.items())
        yield f"clips that were rejected are in no figure of their condition: {named}"
    missing = {place_of(row): row["no_prediction"] for row in results if row["no_prediction"]}
    if missing:
        named = ", ".join(f"{place} {count:,}" for place, count in missing.items())
        yield f"clips without a prediction are in no figure of their condition: {named}"
    if document["other_labels"]:
        words = ", ".join(f"{word!r} {count:,}" for word, count in document["other_labels"].items())
        yield f"labels that are no emotion of the models count in no recall: {words}"
    if document["texts_given"]:
        yield (
            f"the texts of {document['texts_given']:,} of {document['clips']:,} clips came with the manifest and stay the "
            "same under every condition; --transcribe includes the errors of the transcription"
        )
    clean = document["clean_uar"]
    if clean and (clean["value"] if clean["low"] is None else clean["low"]) <= clean["chance"]:
        yield (
            f"the UAR of the clean run, {_with_bounds(clean)}, may be chance ({_percent(clean['chance'])}): a loss of it "
            "means nothing here, flips still do"
        )
    if document["clips"] < _FEW:
        yield f"{document['clips']} clips are too few for any figure to mean much"
    if document["resamples"] and document["groups"] == 1:
        yield f"all clips have one {document['resample_by']}, so there are no intervals"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _with_bounds(figure: Mapping[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    bounds = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{_percent(value or 0.0)}{bounds}"


def place_of(row: Mapping[str, Any]) -> str:
    """Return a condition and its level in words, such as `opus 12 kbit/s`."""
    return row["condition"] if row["level"] is None else f"{row['condition']} {row['level']:g} {row['unit']}"


def title_of(metric: str) -> str:
    """Return the name of a metric for people."""
    return {"uar": "UAR", "flips": "flips"}.get(metric, metric.replace("ccc_", "CCC of "))


def lines_of(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the results as lines: a row for each condition and level, columns for each metric."""
    results = document["results"]
    metrics = list(dict.fromkeys(row["metric"] for row in results))
    yield f"{document['folder']}  mode {document['mode']}, {', '.join(document['models'])}"
    yield f"{document['clips']:,} clips; seed {document['seed']}"
    yield ""
    header = ["condition", "level", "clips", "rejected"]
    for metric in metrics:
        header += ["flips %"] if metric == "flips" else [_scaled_title(metric), "loss"]
    cells = [header]
    for place in dict.fromkeys(map(place_of, results)):
        rows = {row["metric"]: row for row in results if place_of(row) == place}
        first = rows[metrics[0]]
        level = "" if first["level"] is None else f"{first['level']:g} {first['unit']}"
        line = [first["condition"], level, f"{first['clips']:,}", f"{first['rejected']:,}"]
        for metric, row in rows.items():
            loss = "" if first["condition"] == CLEAN else _bounded(row)
            line += [loss] if metric == "flips" else [_number(row["figure"], metric), loss]
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
    if clean := document["clean_uar"]:
        yield f"UAR of the clean run: {_with_bounds(clean)}; by chance {_percent(clean['chance'])}"
    yield "A loss is the clean figure minus this one, on the same clips."
    if document["resamples"] and document["groups"] > 1:
        yield f"In brackets: {100 * document['interval']:.0f} % bootstrap intervals over {document['resample_by']}"
    for warning in document["warnings"]:
        yield f"warning: {warning}"


def _scaled_title(metric: str) -> str:
    return "UAR %" if metric == UAR else title_of(metric)


def _number(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{value:.3f}" if metric.startswith("ccc_") else f"{100 * value:.1f}"


def _bounded(row: Mapping[str, Any]) -> str:
    loss, metric = _number(row["loss"], row["metric"]), row["metric"]
    return loss if row["low"] is None else f"{loss} [{_number(row['low'], metric)}, {_number(row['high'], metric)}]"


def meaning_of(condition: str) -> str:
    """Return the definition of a condition and its level."""
    return CONDITIONS[condition].meaning

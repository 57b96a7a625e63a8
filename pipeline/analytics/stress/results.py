"""Results of a stress test: what each condition does to the labels and dimensions of the same clips.

Every condition is compared with the clean run on the clips that have a prediction in both. `pipeline.analytics.stress.figures`
defines the figures and their intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analytics.stress.clips import CONDITION, LEVEL, RECORDING
from pipeline.analytics.stress.conditions import CLEAN, Variant
from pipeline.analytics.stress.figures import Bootstrap, Floats, ccc, figure, share, uar
from pipeline.errors import ConfigError
from pipeline.schema import emotion_of

DIMENSIONS = ("arousal", "valence", "dominance")
"""Columns of manifests and outputs that are compared by CCC where both have them."""
FLIPS, UAR = "flips", "uar"
Key = tuple[str, float | None]
"""Condition and level; the level is None for the clean run."""
_CLEAN: Key = (CLEAN, None)

TABLE_SCHEMA = pa.schema(
    [
        pa.field("condition", pa.string()),
        pa.field("level", pa.float64()),
        pa.field("unit", pa.string()),
        pa.field("severity", pa.int32()),
        pa.field("metric", pa.string()),
        pa.field("clips", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("no_prediction", pa.int64()),
        pa.field("clean", pa.float64()),
        pa.field("figure", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
"""A row for each condition, level and metric. `clips` are compared; `rejected` and `no_prediction` are clips without a figure.
`loss` is what the condition costs: the clean figure minus `figure`, for `flips` the share of clips itself. `low` and `high`
bound it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The tested clips, ordered by id.

    Attributes:
        ids: N recording ids.
        labels: class of each clip, None without one; None as a whole without a column of labels.
        groups: int64 [N], numbers of the groups that the bootstrap draws.
        dimensions: float64 [N] by name, NaN where the manifest has no value.
    """

    ids: tuple[str, ...]
    labels: tuple[str | None, ...] | None
    groups: NDArray[np.int64]
    dimensions: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the N clips of a `Truth` under one condition.

    Attributes:
        labels: class of each clip, None without a prediction.
        dimensions: float64 [N] by name, NaN without a prediction.
        rejected: reason of each rejected clip by its position.
    """

    labels: list[str | None]
    dimensions: dict[str, Floats]
    rejected: dict[int, str]


def class_of(word: object) -> str | None:
    """Return the emotion of a label, or the label itself in lower case where it is no spelling of one."""
    text = "" if word is None else str(word).strip()
    return _emotion_of(text) or text.lower() or None


def _emotion_of(word: str) -> str | None:
    try:
        return emotion_of(word)
    except ConfigError:
        return None


def predictions_of(truth: Truth, utterances: pa.Table, rejects: pa.Table) -> dict[Key, Predictions]:
    """Return the predictions of a run, from the utterances and rejects of its output."""
    places = {name: number for number, name in enumerate(truth.ids)}
    names = [name for name in DIMENSIONS if name in utterances.column_names]
    predictions: dict[Key, Predictions] = {}

    def of(row: Mapping[str, Any]) -> tuple[Predictions, int]:
        key = (row[CONDITION], row[LEVEL])
        if key not in predictions:
            dimensions = {name: np.full(len(places), np.nan) for name in names}
            predictions[key] = Predictions([None] * len(places), dimensions, {})
        return predictions[key], places[row[RECORDING]]

    for row in utterances.select([RECORDING, CONDITION, LEVEL, "label", *names]).to_pylist():
        found, place = of(row)
        found.labels[place] = class_of(row["label"])
        for name in names:
            found.dimensions[name][place] = np.nan if row[name] is None else row[name]
    for row in rejects.select([RECORDING, CONDITION, LEVEL, "reason"]).to_pylist():
        found, place = of(row)
        found.rejected[place] = row["reason"]
    return predictions


def without_strangers(truth: Truth, predictions: Mapping[Key, Predictions]) -> tuple[Truth, dict[str, int]]:
    """Remove true labels that are no emotion and that no clip was given, so that they count in no recall.

    Returns: the truth, and the number of clips of each removed label.
    """
    if truth.labels is None:
        return truth, {}
    predicted = {label for each in predictions.values() for label in each.labels}
    strangers = {label for label in truth.labels if label and label not in predicted and not _emotion_of(label)}
    counts = Counter(label for label in truth.labels if label in strangers)
    labels = tuple(None if label in strangers else label for label in truth.labels)
    return replace(truth, labels=labels), {str(label): count for label, count in sorted(counts.items())}


def compare(
    truth: Truth, predictions: Mapping[Key, Predictions], variants: Sequence[Variant], *, resamples: int, seed: int
) -> pa.Table:
    """Compare every condition with the clean run. Returns: a table of `TABLE_SCHEMA`; the clean run comes first.

    Raises: ConfigError when the clean run has no prediction.
    """
    clean = predictions.get(_CLEAN)
    if clean is None or len(clean.rejected) == len(truth.ids):
        raise ConfigError("every clip was rejected in the clean run, so there is nothing to compare with")
    bootstrap = Bootstrap(truth.groups, resamples, seed)
    rows: list[dict[str, Any]] = []
    for key, variant in keys_of(variants).items():
        found = predictions[key]
        place = {
            "condition": key[0],
            "level": key[1],
            "unit": variant.condition.unit if variant else None,
            "severity": variant.severity if variant else 0,
            "rejected": len(found.rejected),
        }
        rows += ({**place, **figures} for figures in _figures(truth, clean, found, bootstrap))
    return pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)


def clean_uar(
    truth: Truth, predictions: Mapping[Key, Predictions], *, resamples: int, seed: int
) -> dict[str, float | None] | None:
    """Return the UAR of the clean run with its interval and the UAR by chance; None without labelled predictions."""
    clean = predictions[_CLEAN].labels
    labelled = np.array([None not in pair for pair in zip(truth.labels or clean, clean, strict=True)])
    if truth.labels is None or not labelled.any():
        return None
    statistic = uar(truth.labels, clean)
    low, high = Bootstrap(truth.groups, resamples, seed).interval_of(statistic, labelled)
    value = float(statistic(labelled.astype(np.float64)[np.newaxis])[0])
    return {"value": value, "low": low, "high": high, "chance": 1 / len({each for each in truth.labels if each})}


def keys_of(variants: Sequence[Variant]) -> dict[Key, Variant | None]:
    """Return the conditions of a test in the order of its results, the clean run first."""
    return {_CLEAN: None, **{(each.condition.name, float(each.level)): each for each in variants}}


def _figures(truth: Truth, clean: Predictions, found: Predictions, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """Yield the figures of one condition, metric by metric."""
    annotated = len(truth.ids) - len(found.rejected)
    pairs = list(zip(clean.labels, found.labels, strict=True))
    both = np.array([None not in pair for pair in pairs])
    if any(clean.labels):
        counts = {"no_prediction": annotated - sum(label is not None for label in found.labels)}
        flips = figure(share([False] * len(pairs)), share([a != b for a, b in pairs]), both, bootstrap)
        yield {"metric": FLIPS, "clips": int(both.sum()), **counts, **_as_cost(flips)}
        if truth.labels is not None and any(truth.labels):
            labelled = both & np.array([label is not None for label in truth.labels])
            figures = figure(uar(truth.labels, clean.labels), uar(truth.labels, found.labels), labelled, bootstrap)
            yield {"metric": UAR, "clips": int(labelled.sum()), **counts, **figures}
    for name in (each for each in DIMENSIONS if each in truth.dimensions and each in clean.dimensions):
        true, before, after = truth.dimensions[name], clean.dimensions[name], found.dimensions[name]
        present = ~np.isnan(true + before + after)
        figures = figure(ccc(true, before), ccc(true, after), present, bootstrap)
        missing = annotated - int((~np.isnan(after)).sum())
        yield {"metric": f"ccc_{name}", "clips": int(present.sum()), "no_prediction": missing, **figures}


def _as_cost(flips: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of flips, of which more is worse, with the sign of a loss."""
    low, high = flips["low"], flips["high"]
    bounds = {"low": None if high is None else -high + 0.0, "high": None if low is None else -low + 0.0}
    return {**flips, "loss": flips["figure"], **bounds}


def predictions_table(truth: Truth, predictions: Mapping[Key, Predictions], variants: Sequence[Variant]) -> pa.Table:
    """Return a row for each clip and condition: its true, clean and predicted label, and why a prediction is missing."""
    clean = predictions[_CLEAN]
    tables = []
    for key in keys_of(variants):
        found, count = predictions[key], len(truth.ids)
        flips = [None if None in pair else pair[0] != pair[1] for pair in zip(clean.labels, found.labels, strict=True)]
        columns = {
            "recording_id": pa.array(truth.ids, pa.string()),
            "condition": pa.array([key[0]] * count, pa.string()),
            "level": pa.array([key[1]] * count, pa.float64()),
            "true_label": pa.array(truth.labels or [None] * count, pa.string()),
            "clean_label": pa.array(clean.labels, pa.string()),
            "label": pa.array(found.labels, pa.string()),
            "flipped": pa.array(flips, pa.bool_()),
            "reject_reason": pa.array([found.rejected.get(place) for place in range(count)], pa.string()),
            **{name: pa.array(values, pa.float64(), from_pandas=True) for name, values in found.dimensions.items()},
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)

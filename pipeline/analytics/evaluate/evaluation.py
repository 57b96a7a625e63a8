"""Evaluation of outputs against the labels and reference texts of their manifests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.analytics.evaluate.calibration import measure
from pipeline.analytics.evaluate.compare import compare, groups_of
from pipeline.analytics.evaluate.labelled import REFERENCE, SMALL, Labelled, read_labelled
from pipeline.analytics.evaluate.metrics import INTERVAL, confusion, per_class, summary, with_intervals
from pipeline.analytics.evaluate.published import beside_published
from pipeline.analytics.evaluate.results import (
    Abstention,
    Evaluation,
    Kept,
    Measured,
    OutputResult,
    Published,
    Slice,
    Threshold,
)
from pipeline.analytics.evaluate.words import Errors, count_errors, error_rate
from pipeline.config import primary_language
from pipeline.errors import ConfigError, did_you_mean
from pipeline.schema import EMOTIONS, passthrough_name

FORMAT = 1
SLICES = ("dataset", "language", "speaker", "sex", "duration", "text_source")
"""Columns evaluated by value if the output has them; `duration` is `duration_s` in steps."""
_MOST_VALUES = 50
_DURATIONS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_ABSTENTION = (*(round(0.05 * step, 2) for step in range(6, 20)), 0.98, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of an evaluation.

    Attributes:
        labels: the manifest column with the true labels.
        references: the manifest column with the reference texts, or None for `reference` if it exists.
        slices: columns to evaluate by value, or None for the existing ones of `SLICES`.
        resamples: number of bootstrap resamples; 0 for no intervals.
        resample_by: the column whose values are drawn, because rows with the same value are not independent.
        seed: of the bootstrap.
        published_test_set: the user declares that this is the test set of the published results.
    """

    labels: str
    references: str | None = None
    slices: tuple[str, ...] | None = None
    resamples: int = 1000
    resample_by: str = "recording_id"
    seed: int = 0
    published_test_set: bool = False


def read(outputs: Sequence[str], options: Options) -> list[Labelled]:
    """Read the labelled rows of each output, with the columns that the options need.

    Raises: ConfigError for a missing column.
    """
    named = [
        passthrough_name(options.references or REFERENCE),
        passthrough_name(options.resample_by),
        options.resample_by,
    ]
    slices = [name for name in options.slices or SLICES if name != "duration"]
    labelled = [read_labelled(output, options.labels, [*named, "dataset", *slices]) for output in outputs]
    required = {
        "--slices": options.slices or (),
        "--resample-by": (options.resample_by,),
        "--references": filter(None, [options.references]),
    }
    for option, name in [(option, name) for option, names in required.items() for name in names]:
        for each in labelled:
            if name != "duration" and name not in each.table.column_names:
                near = did_you_mean(name, each.table.column_names)
                raise ConfigError(f"{option} {name}: {each.output} has no such column{near}")
    return labelled


def evaluate(outputs: Sequence[Labelled], options: Options) -> Evaluation:
    """Evaluate each output, and compare each but the first with the first."""
    drawing: dict[str, Any] = {"resample_by": options.resample_by, "resamples": options.resamples, "seed": options.seed}
    references = passthrough_name(options.references or REFERENCE)
    errors = [
        count_errors(labelled, references) if references in labelled.table.column_names else {} for labelled in outputs
    ]
    return Evaluation(
        format=FORMAT,
        version=__version__,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        labels=options.labels,
        interval=INTERVAL,
        **drawing,
        outputs=tuple(_of_output(labelled, options, of_it) for labelled, of_it in zip(outputs, errors, strict=True)),
        comparisons=tuple(
            compare(outputs[0], other, [errors[0], of_it], **drawing)
            for other, of_it in list(zip(outputs, errors, strict=True))[1:]
        ),
    )


def _of_output(labelled: Labelled, options: Options, errors: Errors) -> OutputResult:
    slices = tuple(_slices(labelled, options, errors))
    return OutputResult(
        output=labelled.output,
        mode=labelled.settings.mode,
        settings=labelled.settings.document(),
        models=tuple(sorted(set(labelled.column("model")))),
        counts=labelled.counts,
        overall=Measured(**_figures(labelled, options, errors)),
        slices=slices,
        slices_not_shown={name: len(values) - _MOST_VALUES for name, values in _values(labelled, options).items()
                          if len(values) > _MOST_VALUES},
        abstention=_abstention(labelled),
        published=tuple(_published(labelled, options)),
        warnings=(*labelled.warnings, *_warnings(labelled, slices)),
    )  # fmt: skip


def _warnings(labelled: Labelled, slices: Sequence[Slice]) -> Iterator[str]:
    small = [f"{part.column} {part.value} ({part.rows})" for part in slices if part.small]
    if small:
        listed = ", ".join(small[:10]) + (", ..." if len(small) > 10 else "")
        yield f"{len(small)} slices have fewer than {SMALL} rows, so their figures are mostly chance: {listed}"
    if len(labelled) < SMALL:
        yield f"the figures are of {len(labelled)} rows, so they are mostly chance"
    unknown = sorted(
        {EMOTIONS[t] for t in labelled.truth[labelled.scores[np.arange(len(labelled)), labelled.truth] <= 0]}
    )
    if unknown:
        yield f"the score of the true class is 0 in some rows; the model may not know these classes: {', '.join(unknown)}"


def _figures(labelled: Labelled, options: Options, errors: Errors) -> dict[str, Any]:
    """Compute the fields of `Measured` for the given rows."""
    truth, predicted = labelled.truth, labelled.predicted
    groups = groups_of(labelled, options.resample_by)
    drawing: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    return {
        "rows": len(labelled),
        "metrics": with_intervals(truth, predicted, groups, len(EMOTIONS), **drawing),
        "per_class": per_class(truth, predicted, EMOTIONS),
        "confusion": confusion(truth, predicted, EMOTIONS),
        "calibration": measure(labelled.scores, labelled.confidence, truth, predicted),
        "words": error_rate(errors, labelled.column("recording_id"), groups, **drawing) if errors else None,
    }


def _values(labelled: Labelled, options: Options) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return the rows of each value, for each column to evaluate by value; the most frequent value comes first."""
    rows_of: dict[str, dict[str, NDArray[np.int64]]] = {}
    for name in options.slices or SLICES:
        if name == "duration":
            values = [_duration_step(value) for value in labelled.column("duration_s")]
        elif name in labelled.table.column_names:
            values = [None if value is None else str(value) for value in labelled.column(name)]
        else:
            continue
        rows: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            rows.setdefault("(none)" if value is None else value, []).append(row)
        ranked = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
        rows_of[name] = {value: np.array(numbers, np.int64) for value, numbers in ranked}
    return rows_of


def _slices(labelled: Labelled, options: Options, errors: Errors) -> Iterator[Slice]:
    for name, values in _values(labelled, options).items():
        for value, rows in list(values.items())[:_MOST_VALUES]:
            figures = _figures(labelled.take(rows), options, errors)
            yield Slice(column=name, value=value, small=len(rows) < SMALL, **figures)


def _duration_step(duration_s: float | None) -> str | None:
    if duration_s is None:
        return None
    edges = (0.0, *_DURATIONS_S, float("inf"))
    for low, high in itertools.pairwise(edges):
        if duration_s < high:
            return f"{low:g} s or more" if high == float("inf") else f"{low:g} to {high:g} s"
    return None


def _abstention(labelled: Labelled) -> Abstention:
    """Compute coverage and accuracy with abstention: as done in this output, and for a range of thresholds."""
    right = labelled.truth == labelled.predicted

    def kept(mask: NDArray[np.bool_]) -> dict[str, Any]:
        share = float(mask.mean())
        return {"rows": int(mask.sum()), "share": share, "accuracy": float(right[mask].mean()) if mask.any() else None}

    done = Kept(**kept(~labelled.abstained)) if labelled.abstained.any() else None
    return Abstention(
        done, tuple(Threshold(min_confidence=bound, **kept(labelled.confidence >= bound)) for bound in _ABSTENTION)
    )


def _published(labelled: Labelled, options: Options) -> Iterator[Published]:
    languages = np.array([primary_language(tag) for tag in labelled.column("language")])
    has_dataset = "dataset" in labelled.table.column_names
    for language in sorted(set(languages)):
        part = labelled.take(np.flatnonzero(languages == language))
        datasets = {str(name) for name in part.column("dataset") if name} if has_dataset else set()
        row = beside_published(
            language, labelled.settings.mode, part.truth, summary(part.truth, part.predicted), datasets,
            declared=options.published_test_set,
        )  # fmt: skip
        if row is not None:
            yield row

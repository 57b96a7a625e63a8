"""Evaluation of outputs against the labels and reference texts of their manifests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.analytics.evaluate import dimensions, metrics
from pipeline.analytics.evaluate.bootstrap import INTERVAL, RECORDING, SPEAKER, Bootstrap, groups_of
from pipeline.analytics.evaluate.calibration import measure
from pipeline.analytics.evaluate.compare import compare, holm
from pipeline.analytics.evaluate.labelled import (
    REFERENCE,
    SMALL,
    Labelled,
    NotPredictedError,
    Rated,
    Truth,
    read_labelled,
)
from pipeline.analytics.evaluate.metrics import confusion, summary
from pipeline.analytics.evaluate.published import beside_published
from pipeline.analytics.evaluate.results import (
    Abstention,
    Dimension,
    DimensionFigures,
    DimensionSlice,
    Evaluation,
    Kept,
    Measured,
    OutputResult,
    Published,
    Slice,
    Speakers,
    Threshold,
)
from pipeline.analytics.evaluate.words import Errors, count_errors, error_rate
from pipeline.config import primary_language
from pipeline.errors import ConfigError, did_you_mean
from pipeline.schema import passthrough_name

FORMAT = 1
SLICES = ("dataset", "language", "speaker", "sex", "duration", "text_source")
"""Columns evaluated by value if the output has them; `duration` is `duration_s` in steps."""
_MOST_VALUES = 50
_DURATIONS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_ABSTENTION = (*(round(0.05 * step, 2) for step in range(6, 20)), 0.98, 0.99, 0.999)


_FEW_GROUPS = 10
"""Number of groups below which percentile intervals are known to be too narrow."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of an evaluation.

    Attributes:
        labels: the manifest column with the true labels; None to evaluate dimensions only.
        dimensions: the manifest column with the labels of each dimension to evaluate.
        label_range: values of these labels that correspond to 0 and 1.
        models: further models of each output to evaluate, by name, and to compare with the main one.
        references: the manifest column with the reference texts, or None for `reference` if it exists.
        slices: columns to evaluate by value, or None for the existing ones of `SLICES`.
        resamples: number of bootstrap resamples; 0 for no intervals.
        resample_by: the column whose values are drawn, because rows with the same value are not independent; None for
            `speaker` where every output has speakers, or else `recording_id`.
        seed: of the bootstrap.
        published_test_set: the user declares that this is the test set of the published results.
    """

    labels: str | None
    dimensions: Mapping[str, str] = field(default_factory=dict)
    label_range: tuple[float, float] = (0.0, 1.0)
    models: tuple[str, ...] = ()
    references: str | None = None
    slices: tuple[str, ...] | None = None
    resamples: int = 1000
    resample_by: str | None = None
    seed: int = 0
    published_test_set: bool = False


def read(outputs: Sequence[str], options: Options) -> list[Labelled]:
    """Read the labelled rows of each output and further model, with the columns that the options need.

    With further models, those that predict only part of what is asked for, or nothing of it, get a warning.

    Raises: ConfigError for a missing column, or when no model predicts anything to compare.
    """
    references, group = passthrough_name(options.references or REFERENCE), options.resample_by or SPEAKER
    slices = [name for name in options.slices or SLICES if name != "duration"]
    columns = [references, passthrough_name(group), group, SPEAKER, "dataset", *slices]
    truth = Truth(options.labels, options.dimensions, options.label_range)
    labelled: list[Labelled] = []
    left_out: list[NotPredictedError] = []
    for output, model in itertools.product(outputs, (None, *options.models)):
        try:
            labelled.append(read_labelled(output, truth, columns, model=model, partial=bool(options.models)))
        except NotPredictedError as error:
            left_out.append(error)
    if left_out and not (options.models and labelled):
        raise left_out[0]
    if left_out:
        labelled[0] = replace(labelled[0], warnings=(*labelled[0].warnings, *map(str, left_out)))
    required = {
        "--slices": options.slices or (),
        "--resample-by": filter(None, [options.resample_by]),
        "--references": filter(None, [options.references]),
    }
    for option, name in [(option, name) for option, names in required.items() for name in names]:
        for each in labelled:
            if name != "duration" and name not in each.table.column_names:
                near = did_you_mean(name, each.table.column_names)
                raise ConfigError(f"{option} {name}: {each.output} has no such column{near}")
    wordless = next((each.output for each in labelled if each.settings.texts != "keep"), None)
    if options.references and wordless:
        raise ConfigError(f"--references: {wordless} was made with --texts, and has no words to compare with")
    return labelled


def evaluate(outputs: Sequence[Labelled], options: Options) -> Evaluation:
    """Evaluate each output, and compare each but the first with the first."""
    bootstrap = Bootstrap(options.resample_by or _default_groups(outputs), options.resamples, options.seed)
    references = passthrough_name(options.references or REFERENCE)
    errors = [
        count_errors(labelled, references)
        if references in labelled.table.column_names and labelled.settings.texts == "keep"
        else {}
        for labelled in outputs
    ]
    comparisons = [
        compare(outputs[0], other, [errors[0], of_it], bootstrap)
        for other, of_it in list(zip(outputs, errors, strict=True))[1:]
    ]
    return Evaluation(
        format=FORMAT,
        version=__version__,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        labels=options.labels,
        interval=INTERVAL,
        resample_by=bootstrap.resample_by,
        resamples=options.resamples,
        seed=options.seed,
        outputs=tuple(
            _of_output(labelled, options, of_it, bootstrap) for labelled, of_it in zip(outputs, errors, strict=True)
        ),
        comparisons=holm(comparisons),
    )


def _default_groups(outputs: Sequence[Labelled]) -> str:
    """Return `speaker` if all outputs have speakers: utterances of one speaker are not independent."""
    tables = [
        table for output in outputs for table in (output.table, *(each.table for each in output.rated)) if len(table)
    ]
    has_speakers = all(SPEAKER in table.column_names and table[SPEAKER].null_count < len(table) for table in tables)
    return SPEAKER if has_speakers else RECORDING


def _of_output(labelled: Labelled, options: Options, errors: Errors, bootstrap: Bootstrap) -> OutputResult:
    slices = tuple(_slices(labelled, options, errors, bootstrap))
    dimension_results = tuple(_dimension(rated, options, bootstrap) for rated in labelled.rated)
    values = _values(labelled.table, options) if len(labelled) else {}
    return OutputResult(
        output=labelled.output,
        mode=labelled.settings.mode,
        settings=labelled.settings.document(),
        models=tuple(sorted({model for table in _tables(labelled) for model in table["model"].to_pylist() if model})),
        counts=labelled.counts,
        overall=Measured(**_figures(labelled, errors, bootstrap)) if len(labelled) else None,
        slices=slices,
        slices_not_shown={name: len(rows) - _MOST_VALUES for name, rows in values.items() if len(rows) > _MOST_VALUES},
        abstention=_abstention(labelled) if len(labelled) else None,
        published=tuple(_published(labelled, options)),
        warnings=(*labelled.warnings, *_warnings(labelled, (*slices, *_all_slices(dimension_results)), bootstrap)),
        dimensions=dimension_results,
    )


def _tables(labelled: Labelled) -> list[pa.Table]:
    """Return the tables of the compared rows: of classes, and of each dimension."""
    return [table for table in (labelled.table, *(each.table for each in labelled.rated)) if len(table)]


def _all_slices(results: Sequence[Dimension]) -> list[DimensionSlice]:
    return [part for each in results for part in each.slices]


def _warnings(labelled: Labelled, slices: Sequence[Slice | DimensionSlice], bootstrap: Bootstrap) -> Iterator[str]:
    small = list(dict.fromkeys(f"{part.column} {part.value} ({part.rows})" for part in slices if part.small))
    if small:
        listed = ", ".join(small[:10]) + (", ..." if len(small) > 10 else "")
        yield f"{len(small)} slices have fewer than {SMALL} rows, so their figures are mostly chance: {listed}"
    tables = _tables(labelled)
    rows = min(map(len, tables))
    if rows < SMALL:
        yield f"the figures are of {rows} rows, so they are mostly chance"
    groups = min(len(set(bootstrap.groups_of(table).tolist())) for table in tables)
    if bootstrap.resamples and groups == 1:
        yield f"all rows have the same {bootstrap.resample_by}, so the figures have no intervals"
    elif bootstrap.resamples and groups < _FEW_GROUPS:
        yield f"the intervals are of {groups} values of {bootstrap.resample_by}, so they are too narrow"
    unknown = sorted(
        {labelled.classes[t] for t in labelled.truth[labelled.scores[np.arange(len(labelled)), labelled.truth] <= 0]}
    )
    if unknown:
        yield f"the score of the true class is 0 in some rows; the model may not know these classes: {', '.join(unknown)}"


def _figures(labelled: Labelled, errors: Errors, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the fields of `Measured` for the given rows."""
    truth, predicted, classes = labelled.truth, labelled.predicted, labelled.classes
    groups = bootstrap.groups_of(labelled.table)
    overall, per_class = metrics.estimates(truth, predicted, groups, classes, bootstrap)
    rows, speakers = _speakers_of(labelled.table)
    return {
        "rows": len(labelled),
        "metrics": overall,
        "per_class": per_class,
        "confusion": confusion(truth, predicted, classes),
        "calibration": measure(labelled.scores, labelled.confidence, truth, predicted),
        "words": error_rate(errors, labelled.column(RECORDING), groups, bootstrap) if errors else None,
        "speakers": _over(speakers, metrics.spreads(truth[rows], predicted[rows], speakers, len(classes)))
        if len(rows)
        else None,
    }


def _speakers_of(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with a speaker, and the speaker of each, numbered from 0; no row with fewer than two speakers."""
    none = np.zeros(0, np.int64)
    if SPEAKER not in table.column_names:
        return none, none
    rows = np.flatnonzero(table[SPEAKER].is_valid().to_numpy())
    speakers = groups_of(table.take(pa.array(rows)), SPEAKER)
    return (rows, speakers) if len(set(speakers.tolist())) > 1 else (none, none)


def _over(speakers: NDArray[np.int64], spreads: Mapping[str, Any]) -> Speakers:
    return Speakers(SPEAKER, int(speakers.max()) + 1, spreads)


def _dimension(rated: Rated, options: Options, bootstrap: Bootstrap) -> Dimension:
    slices = [
        DimensionSlice(
            column=name, value=value, small=len(rows) < SMALL, **_dimension_figures(rated.take(rows), bootstrap)
        )
        for name, values in _values(rated.table, options).items()
        for value, rows in list(values.items())[:_MOST_VALUES]
    ]
    overall = DimensionFigures(**_dimension_figures(rated, bootstrap))
    return Dimension(rated.dimension, rated.labels, overall, tuple(slices))


def _dimension_figures(rated: Rated, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the fields of `DimensionFigures` for the given rows."""
    truth, predicted = rated.truth, rated.predicted
    rows, speakers = _speakers_of(rated.table)
    return {
        "rows": len(rated),
        "metrics": dimensions.estimates(truth, predicted, bootstrap.groups_of(rated.table), bootstrap),
        "speakers": _over(speakers, dimensions.spreads(truth[rows], predicted[rows], speakers)) if len(rows) else None,
    }


def _values(table: pa.Table, options: Options) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return the rows of each value, for each column to evaluate by value; the most frequent value comes first."""
    rows_of: dict[str, dict[str, NDArray[np.int64]]] = {}
    for name in options.slices or SLICES:
        if name == "duration":
            values = [_duration_step(value) for value in table["duration_s"].to_pylist()]
        elif name in table.column_names:
            values = [None if value is None else str(value) for value in table[name].to_pylist()]
        else:
            continue
        rows: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            rows.setdefault("(none)" if value is None else value, []).append(row)
        ranked = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
        rows_of[name] = {value: np.array(numbers, np.int64) for value, numbers in ranked}
    return rows_of


def _slices(labelled: Labelled, options: Options, errors: Errors, bootstrap: Bootstrap) -> Iterator[Slice]:
    for name, values in _values(labelled.table, options).items():
        for value, rows in list(values.items())[:_MOST_VALUES]:
            figures = _figures(labelled.take(rows), errors, bootstrap)
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
            language,
            labelled.settings.mode,
            [part.classes[number] for number in part.truth],
            summary(part.truth, part.predicted),
            datasets,
            declared=options.published_test_set,
        )
        if row is not None:
            yield row

"""Labelled utterances of an output, in columns, and counts of those that cannot be compared.

Costs about 200 bytes of memory per utterance, and one read of the columns that are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analytics.evaluate.classes import Classes
from pipeline.analytics.evaluate.results import Counts
from pipeline.analytics.review import CORRECTED, ENDINGS, read_corrections
from pipeline.config.columns import SPEAKER_ID
from pipeline.config.settings import Settings
from pipeline.dataset.reader import Rows, committed_rows, current_rejects, reading
from pipeline.errors import ConfigError, did_you_mean
from pipeline.redaction import without_query
from pipeline.schema import REGRESSION, passthrough_name
from pipeline.storage.store import open_store

REFERENCE = "reference"
"""Default manifest column of the reference texts."""
SMALL = 30
"""Number of rows below which results are mostly chance: with 30 rows an accuracy of 0.8 is known to within 0.14."""
BY_MODEL = "by_model"
"""Column with the predictions of further models, one struct of columns for each."""
_IDENTITY = (
    "utterance_id",
    "recording_id",
    SPEAKER_ID,
    "channel",
    "segment_index",
    "start_s",
    "end_s",
    "language",
    "duration_s",
    "text",
    "text_source",
)
_PREDICTIONS = (
    "label",
    "emotion",
    "emotion_null_reason",
    "confidence",
    "scores",
    "label_scores",
    "labels",
    "abstained",
    "model",
    "arousal",
    "valence",
    "dominance",
)
"""Columns of a model's predictions, those of them that the dataset has."""


@dataclass(frozen=True, slots=True)
class Rated:
    """M utterances with a label and a prediction of one dimension.

    Attributes:
        dimension: arousal, valence or dominance.
        labels: the manifest column of the labels.
        table: the requested columns of the output, M rows.
        truth, predicted: float64 [M], both in 0..1.
    """

    dimension: str
    labels: str
    table: pa.Table
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]

    def __len__(self) -> int:
        """Return M."""
        return len(self.truth)

    def take(self, rows: NDArray[np.int64]) -> Rated:
        """Return the given rows, in the given order."""
        table = self.table.take(pa.array(rows))
        return Rated(self.dimension, self.labels, table, self.truth[rows], self.predicted[rows])


@dataclass(frozen=True, slots=True)
class Labelled:
    """N labelled utterances of one output; 0 when only dimensions are evaluated.

    Attributes:
        output: its URI without the query, and the name of the model if it is a further one.
        settings: those of the dataset: mode, precision and the rest.
        table: the requested columns of the output, N rows.
        classes: names of the classes.
        truth, predicted: int64 [N], indices into `classes`; the prediction is the model's label, even where it
            abstained.
        confidence: float64 [N].
        scores: float64 [N, classes]; 0 for a class that the model does not know.
        abstained: bool [N].
        counts: numbers of utterances, by what keeps them out of the figures.
        warnings: sentences on what limits the results.
        rated: the dimensions with labels.
    """

    output: str
    settings: Settings
    table: pa.Table
    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    scores: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    counts: Counts
    warnings: tuple[str, ...] = ()
    rated: tuple[Rated, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.truth)

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """Return the given rows, in the given order, without dimensions."""
        return Labelled(
            self.output,
            self.settings,
            self.table.take(pa.array(rows)),
            self.classes,
            self.truth[rows],
            self.predicted[rows],
            self.confidence[rows],
            self.scores[rows],
            self.abstained[rows],
            self.counts,
            self.warnings,
        )

    def column(self, name: str) -> list[Any]:
        """Return the values of a column."""
        values: list[Any] = self.table[name].to_pylist()
        return values


@dataclass(frozen=True, slots=True)
class Truth:
    """Manifest columns that hold the truth.

    Attributes:
        labels: column of the true classes, or a reviewed file of `jobs.review`; None to evaluate dimensions only.
        dimensions: column of the labels of each dimension.
        label_range: values of these labels that correspond to 0 and 1.
    """

    labels: str | None
    dimensions: Mapping[str, str] = field(default_factory=dict)
    label_range: tuple[float, float] = (0.0, 1.0)


class NotPredictedError(ConfigError):
    """A model that predicts none of what it is to be compared with."""


def read_labelled(
    output: str, truth: Truth, columns: Sequence[str] = (), *, model: str | None = None, partial: bool = False
) -> Labelled:
    """Read the labelled utterances of an output, of unfinished runs too.

    Args:
        output: value of the job's `--output`.
        columns: further columns to keep, by their names in the output; missing ones are ignored.
        model: name of a further model of the dataset; None for the main one.
        partial: accept a model that predicts classes or some dimensions only, with a warning about the rest.
    Raises: NotPredictedError for a model that predicts nothing to compare, and unless `partial` for one that does not predict
        everything; ConfigError when there is no output, no such column, or no row to compare; JobError when a file cannot be
        read.
    """
    location, rows = without_query(output), committed_rows(open_store(output))
    if not rows.plans:
        raise ConfigError(f"the output at {location} has no run; start its jobs.annotate again, then this")
    names = rows.schema().names
    corrections = read_corrections(truth.labels) if truth.labels and truth.labels.endswith(ENDINGS) else None
    column = None if truth.labels is None or corrections else _column_of("--labels", truth.labels, names, location)
    dimensions = {
        dimension: _column_of(f"--dimensions {dimension}", name, names, location)
        for dimension, name in truth.dimensions.items()
    }
    truths = [name for name in (column, *dimensions.values()) if name is not None]
    predictions = [name for name in (_PREDICTIONS if model is None else (BY_MODEL,)) if name not in rows.extra.names]
    wanted = [name for name in dict.fromkeys([*_IDENTITY, *predictions, *truths, *columns]) if name in names]
    with reading():
        table = rows.utterances().to_table(columns=wanted)
    if corrections is not None:
        table, column = (
            _with_corrections(table, corrections, f"--labels {without_query(truth.labels or '')}"),
            CORRECTED,
        )
    if model is not None:
        table, location = with_model(table, model, location), f"{location}, model {model}"
    for dimension in set(dimensions) & set(rows.extra.names):
        raise ConfigError(
            f"--dimensions {dimension}: {dimension!r} is a column of the manifest; the model predicts none"
        )
    rated, absent = [], []
    for dimension, name in dimensions.items():
        try:
            rated.append(rate(table, dimension, name, truth.label_range, location))
        except NotPredictedError as error:
            absent.append(error)
    try:
        labelled = label(table, column, rows, location, tuple(rated))
    except NotPredictedError as error:
        absent.append(error)
        labelled = label(table, None, rows, location, tuple(rated))
    if absent and not (partial and (len(labelled) or rated)):
        raise absent[0]
    return replace(labelled, warnings=(*labelled.warnings, *map(str, absent)))


def label(table: pa.Table, column: str | None, rows: Rows, location: str, rated: tuple[Rated, ...] = ()) -> Labelled:
    """Compare the labels of a model with a column of true classes, or with none.

    Raises: NotPredictedError for a regression; ConfigError when there is no row to compare.
    """
    classes = Classes.of(table)
    truth = np.full(table.num_rows, -1, np.int64)
    unknown: dict[str, int] = {}
    rejected = 0
    if column is not None:
        truth, unknown = classes.truth(table[column])
        with reading():
            rejects = current_rejects(rows)
        if column in rejects.column_names:
            rejected = rejects.num_rows - rejects[column].null_count
    labelled = table["label"].is_valid().to_numpy()
    kept = np.flatnonzero((truth >= 0) & labelled)
    if column is not None and not labelled.any() and _has_regressions(table):
        raise NotPredictedError(
            f"{location}: the model is a regression and predicts no label to compare with --labels {column}; "
            "--dimensions evaluates arousal, valence and dominance"
        )
    if column is not None and not len(kept):
        words = ", ".join(map(repr, sorted(unknown)[:5])) or "none"
        raise ConfigError(
            f"{location}: no value of column {column!r} is one of {', '.join(classes.names)}; its values are {words}"
        )
    recordings = table["recording_id"].take(pa.array(kept))
    counts = Counts(
        utterances=table.num_rows,
        compared=len(kept),
        without_label=0 if column is None else table[column].null_count,
        other_labels=dict(sorted(unknown.items())),
        without_prediction=int(((truth >= 0) & ~labelled).sum()),
        rejected_with_label=rejected,
        recordings=pc.count_distinct(recordings).as_py(),
    )
    compared = table.take(pa.array(kept, pa.int64()))
    return Labelled(
        output=location,
        settings=rows.plans[0].settings,
        table=compared,
        classes=classes.names,
        truth=truth[kept],
        predicted=classes.numbers(compared["label"].to_pylist()),
        confidence=compared["confidence"].to_numpy().astype(np.float64),
        scores=classes.scores(compared),
        abstained=compared["abstained"].fill_null(False).to_numpy(),
        counts=counts,
        warnings=tuple(_warnings(counts, rows.unfinished)),
        rated=rated,
    )


def _with_corrections(table: pa.Table, corrections: Mapping[str, str], option: str) -> pa.Table:
    """Append the corrections of a review as a column. Raises: ConfigError when none is of an utterance of the output."""
    values = [corrections.get(utterance) for utterance in table["utterance_id"].to_pylist()]
    if not any(values):
        raise ConfigError(f"{option}: no utterance of this output is in the file; was another output reviewed?")
    return table.append_column(CORRECTED, pa.array(values, pa.string()))


def _has_regressions(table: pa.Table) -> bool:
    reasons = "emotion_null_reason"
    return reasons in table.column_names and pc.any(pc.equal(table[reasons], REGRESSION)).as_py() is True


def with_model(table: pa.Table, model: str, location: str) -> pa.Table:
    """Return a table with the predictions of a further model as its columns, in place of the column `by_model`."""
    names = [each.name for each in table.schema.field(BY_MODEL).type] if BY_MODEL in table.column_names else []
    if model not in names:
        known = f"; it has {', '.join(names)}" if names else ""
        raise ConfigError(f"--model {model}: {location} has no further model of this name{known}")
    structs = pc.struct_field(table[BY_MODEL], [model])
    for each in structs.type:
        if each.name in _PREDICTIONS:
            table = table.append_column(each.name, pc.struct_field(structs, [each.name]))
    defaults = {"abstained": pa.repeat(False, table.num_rows), "model": pa.repeat(model, table.num_rows)}
    for name, values in defaults.items():
        if name not in table.column_names:
            table = table.append_column(name, values)
    return table.drop_columns([BY_MODEL])


def rate(table: pa.Table, dimension: str, column: str, label_range: tuple[float, float], location: str) -> Rated:
    """Select the rows with a label and a prediction of a dimension, and scale the labels to 0..1.

    Raises: NotPredictedError when the model predicts no such dimension; ConfigError when there is no row to compare, or for
        labels outside the range.
    """
    if dimension not in table.column_names:
        raise NotPredictedError(
            f"--dimensions {dimension}: {location} has no column {dimension!r}; the model predicts none"
        )
    try:
        labels = table[column].cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"--dimensions {dimension}: column {column!r} of {location} is not numeric") from error
    low, high = label_range
    truth = (labels - low) / (high - low)
    if len(table) and table[dimension].null_count == len(table):
        raise NotPredictedError(f"--dimensions {dimension}: the model of {location} predicts no {dimension}")
    predicted = table[dimension].cast(pa.float64()).to_numpy()
    kept = np.flatnonzero(np.isfinite(truth) & np.isfinite(predicted))
    if not len(kept):
        raise ConfigError(f"--dimensions {dimension}: {location} has no row with both {column!r} and {dimension!r}")
    if truth[kept].min() < -1e-6 or truth[kept].max() > 1 + 1e-6:
        values = labels[kept]
        raise ConfigError(
            f"--dimensions {dimension}: column {column!r} of {location} has values from {values.min():g} to "
            f"{values.max():g}; give the ends of their scale with --label-range, as in 1:7"
        )
    return Rated(dimension, column, table.take(pa.array(kept)), truth[kept], predicted[kept])


def _column_of(option: str, column: str, names: Sequence[str], location: str) -> str:
    """Return the output name of a manifest column: `label` becomes `manifest_label`, because `label` is reserved."""
    renamed = passthrough_name(column)
    if column in _PREDICTIONS and f"manifest_{column}" in names:
        renamed = f"manifest_{column}"
    if renamed in names:
        return renamed
    if column.startswith("manifest_") and column in names:
        return column
    raise ConfigError(f"{option} {column}: {location} has no column {renamed!r}{did_you_mean(renamed, names)}")


def _warnings(counts: Counts, unfinished: Sequence[str]) -> Iterator[str]:
    if unfinished:
        yield f"{len(unfinished)} run(s) are not finished; the figures cover the rows written so far"
    if counts.rejected_with_label:
        yield f"{counts.rejected_with_label:,} labelled recordings were rejected; no figure includes them"
    if counts.without_prediction:
        yield (
            f"{counts.without_prediction:,} labelled utterances have no label by a model: none for their language, or one "
            "without classes; no figure includes them"
        )
    if counts.other_labels:
        words = ", ".join(f"{word!r} {count:,}" for word, count in counts.other_labels.items())
        yield f"some labels are not among the classes; no figure includes their rows: {words}"
    if counts.recordings < counts.compared:
        yield (
            f"{counts.compared:,} utterances come from {counts.recordings:,} recordings: recordings were segmented, and "
            "each segment has the label of its recording"
        )

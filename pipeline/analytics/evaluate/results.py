"""Results of an evaluation. `Evaluation.document()` is the content of `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

Bounds = tuple[float | None, float | None]
"""Ends of an interval; None where undefined."""


def defined(value: float) -> float | None:
    """Return a figure, or None for NaN, which marks an undefined one."""
    return None if math.isnan(value) else float(value)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its bootstrap interval, and the figures of two baselines.

    Attributes:
        value: None where the figure is undefined, such as the kappa of rows of one class.
        low, high: None without resamples, and where all rows are of one speaker or recording.
        chance: for classes, expectation of guesses with equal probabilities; for dimensions, of labels drawn at random.
        majority: for classes, of the most frequent one in every row; for dimensions, of the mean label in every row.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    majority: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of a figure over speakers; None with too few speakers."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, figures: NDArray[np.float64]) -> Spread:
        """Compute both from the figures of the speakers [S], without undefined ones (NaN)."""
        values = figures[~np.isnan(figures)]
        return cls(
            float(values.mean()) if len(values) else None, float(values.std(ddof=1)) if len(values) > 1 else None
        )


@dataclass(frozen=True, slots=True)
class Speakers:
    """Figures computed for each speaker: the number of speakers, and the spread of each metric over them."""

    column: str
    count: int
    metrics: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Precision, recall, F1 and number of rows of one class, with intervals and baselines of the three figures."""

    name: Annotated[str, Field(alias="class")]
    precision: float
    recall: float
    f1: float
    support: int
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix, as counts and as shares of a row: rows are true classes, columns predicted ones."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Rows whose confidence is between `low` and `high`: their number, mean confidence and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration errors of the confidences, the points of a reliability diagram, and the log loss in nats.

    Attributes:
        log_loss_chance: log loss of equal scores for all classes of the rows.
        log_loss_majority: log loss of the shares of the classes as scores.
    """

    expected_error: float
    largest_error: float
    bins: tuple[ReliabilityBin, ...]
    log_loss: float
    log_loss_chance: float | None = None
    log_loss_majority: float | None = None


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Word error rate, its bootstrap interval, and the counts behind it."""

    recordings: int
    word_error_rate: float
    low: float | None
    high: float | None
    words: int
    substitutions: int
    deletions: int
    insertions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of a set of rows. `words` is None without reference texts, `speakers` with fewer than two speakers."""

    rows: int
    metrics: Mapping[str, Estimate]
    per_class: tuple[ClassFigures, ...]
    confusion: Confusion
    calibration: Calibration
    words: WordErrors | None
    speakers: Speakers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Measured):
    """Figures of the rows with one value of a column. `small` marks slices whose figures are mostly chance."""

    column: str
    value: str
    small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Rows that remain when less confident ones are left out: number, share and accuracy (None without a row)."""

    rows: int
    share: float
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Kept):
    """Rows whose confidence is at least `min_confidence`."""

    min_confidence: float


@dataclass(frozen=True, slots=True)
class Abstention:
    """Rows that remain at each threshold, and the rows that this output kept (None where it abstained from none)."""

    kept: Kept | None
    thresholds: tuple[Threshold, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """Published figures of a language and mode, as fractions; `ours` is None where the test set is another."""

    language: str
    mode: str
    published: Mapping[str, float]
    same_test_set: bool
    why_not: tuple[str, ...]
    ours: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of utterances of an output, by what keeps them out of the figures, and of compared recordings.

    Attributes:
        other_labels: rows of each word that is no class.
        without_prediction: rows with a true class and no label by a model.
        rejected_with_label: labelled recordings that were rejected.
    """

    utterances: int
    compared: int
    without_label: int
    other_labels: Mapping[str, int]
    without_prediction: int
    rejected_with_label: int
    recordings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionFigures:
    """Figures of a predicted dimension in a set of rows."""

    rows: int
    metrics: Mapping[str, Estimate]
    speakers: Speakers | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionSlice(DimensionFigures):
    """Figures of the rows with one value of a column. `small` marks slices whose figures are mostly chance."""

    column: str
    value: str
    small: bool


@dataclass(frozen=True, slots=True)
class Dimension:
    """Evaluation of arousal, valence or dominance against a column of labels."""

    dimension: str
    labels: str
    overall: DimensionFigures
    slices: tuple[DimensionSlice, ...]


@dataclass(frozen=True, slots=True)
class OutputResult:
    """Evaluation of one output.

    Attributes:
        overall, abstention: None when only dimensions are evaluated.
        slices_not_shown: for each column with more values than are evaluated, the number of the others.
        warnings: sentences on what limits the figures.
    """

    output: str
    mode: str
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    counts: Counts
    overall: Measured | None
    slices: tuple[Slice, ...]
    slices_not_shown: Mapping[str, int]
    abstention: Abstention | None
    published: tuple[Published, ...]
    warnings: tuple[str, ...]
    dimensions: tuple[Dimension, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of two outputs, the second minus the first with its bootstrap interval, and baselines as in `Estimate`."""

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    chance: float | None = None
    majority: float | None = None

    @classmethod
    def of(cls, first: float, second: float, bounds: Bounds, baselines: Bounds) -> Difference:
        """Build a difference from two figures, NaN where undefined."""
        low, high, chance, majority = *bounds, *baselines
        figures = {"first": defined(first), "second": defined(second), "difference": defined(second - first)}
        return cls(**figures, low=low, high=high, chance=chance, majority=majority)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordDifference(Difference):
    """Word error rates of two outputs over the same recordings."""

    recordings: int


@dataclass(frozen=True, slots=True)
class DimensionDifference:
    """Figures of a predicted dimension in two outputs, over the rows with the same label in both."""

    dimension: str
    rows: int
    metrics: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Test of the accuracies of two outputs: the rows that only one of them labels correctly, and the p-value.

    `p_value_holm` is corrected by Holm's method for the number of comparisons.
    """

    name: str
    only_first_right: int
    only_second_right: int
    p_value: float
    p_value_holm: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two outputs on the utterances they share; without any, all figures but the counts and `words` are None."""

    first: str
    second: str
    rows: int
    only_in_first: int
    only_in_second: int
    labels_differ: int
    metrics: Mapping[str, Difference] | None
    test: PairedTest | None
    agreement: float | None
    largest_score_difference: float | None
    words: WordDifference | None
    dimensions: tuple[DimensionDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """Log loss in nats, and expected calibration error."""

    log_loss: float
    expected_error: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted temperature, and the figures without it, with it, and on held-out rows.

    `cross_validated` is None when a fold is too small for a fit; `output` is that of the rows.
    """

    temperature: float
    rows: int
    before: CalibrationFigures
    after: CalibrationFigures
    cross_validated: CalibrationFigures | None
    output: str


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """Content of a calibration file: the temperature of each model, and so of each language, and the fit behind it."""

    format: int
    method: str
    made_at: str
    models: Mapping[str, Fit]

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return _document(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Evaluation of each output, and comparisons of each but the first with the first.

    Attributes:
        made_at: time in UTC, ISO 8601.
        labels: column of the true classes; None when only dimensions are evaluated.
        interval: probability mass of the intervals.
        calibration_failure: the reason why no calibration was fitted, if one was requested.
    """

    format: int
    version: str
    made_at: str
    labels: str | None
    interval: float
    resample_by: str
    resamples: int
    seed: int
    outputs: tuple[OutputResult, ...]
    comparisons: tuple[Comparison, ...]
    fitted_calibration: FittedCalibration | None = None
    calibration_failure: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return _document(self)

    @classmethod
    def of(cls, content: bytes) -> Evaluation:
        """Read the JSON form. Raises: ValueError naming what is missing or of the wrong type."""
        return TypeAdapter(Evaluation).validate_json(content)


def _document(result: FittedCalibration | Evaluation) -> dict[str, Any]:
    document: dict[str, Any] = TypeAdapter(type(result)).dump_python(result, mode="json", by_alias=True)
    return document

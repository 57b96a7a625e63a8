"""Results of an evaluation. `Evaluation.document()` is the content of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its bootstrap interval; the bounds are None without resamples."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Precision, recall, F1 and number of rows of one true class."""

    name: Annotated[str, Field(alias="class")]
    precision: float
    recall: float
    f1: float
    support: int


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
    """Calibration errors of the confidences, the points of a reliability diagram, and the log loss in nats."""

    expected_error: float
    largest_error: float
    bins: tuple[ReliabilityBin, ...]
    log_loss: float


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
    """Figures of a set of rows. `words` is None without reference texts."""

    rows: int
    metrics: Mapping[str, Estimate]
    per_class: tuple[ClassFigures, ...]
    confusion: Confusion
    calibration: Calibration
    words: WordErrors | None


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


@dataclass(frozen=True, slots=True)
class OutputResult:
    """Evaluation of one output.

    Attributes:
        slices_not_shown: for each column with more values than are evaluated, the number of the others.
        warnings: sentences on what limits the figures.
    """

    output: str
    mode: str
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    counts: Counts
    overall: Measured
    slices: tuple[Slice, ...]
    slices_not_shown: Mapping[str, int]
    abstention: Abstention
    published: tuple[Published, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of two outputs, and the second minus the first with its bootstrap interval."""

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WordDifference(Difference):
    """Word error rates of two outputs over the same recordings."""

    recordings: int


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Test of the accuracies of two outputs: the rows that only one of them labels correctly, and the p-value."""

    name: str
    only_first_right: int
    only_second_right: int
    p_value: float


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
        interval: probability mass of the intervals.
        calibration_failure: the reason why no calibration was fitted, if one was requested.
    """

    format: int
    version: str
    made_at: str
    labels: str
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

"""Calibration error of confidences, and temperature scaling.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 2 (expected calibration error, 15 bins of
equal width) and 4.2 (temperature scaling). Scores are softmax outputs, so their logarithms are the logits up to a
constant, which softmax cancels: scaling by a temperature needs no logits. It preserves the order of a row's scores, and
so its label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.model_selection import GroupKFold

from pipeline.analytics.evaluate.results import Calibration, CalibrationFigures, Fit, ReliabilityBin
from pipeline.errors import ConfigError

BINS = 15
LEAST_ROWS = 50
"""Minimum number of labelled rows for a useful temperature."""
_FOLDS = 5
_BOUNDS = (0.05, 20.0)
_LEAST_SCORE = 1e-38  # about the smallest normal float32
Floats = NDArray[np.float64]


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Compute the points of a reliability diagram: the bins that contain rows, by increasing confidence.

    Args:
        confidence: [N], confidence of the predicted label.
        right: [N], true where the predicted label is correct.
    """
    bounded = np.clip(confidence, 0.0, 1.0)
    accuracy, mean = calibration_curve(right, bounded, n_bins=BINS, strategy="uniform")
    edges = np.linspace(0.0, 1.0, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], bounded), minlength=BINS)  # the same bins as calibration_curve
    return tuple(
        ReliabilityBin(float(edges[number]), float(edges[number + 1]), int(counts[number]), float(m), float(a))
        for number, m, a in zip(np.flatnonzero(counts), mean, accuracy, strict=True)
    )


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean difference between confidence and accuracy, weighted by the rows of each bin."""
    return sum(each.rows * _gap(each) for each in bins) / sum(each.rows for each in bins)


def _gap(of_bin: ReliabilityBin) -> float:
    return abs(of_bin.accuracy - of_bin.confidence)


def measure(scores: Floats, confidence: Floats, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Calibration:
    """Compute calibration errors and log loss of the scores [N, classes] and confidences [N]."""
    bins = reliability(confidence, truth == predicted)
    shares = np.bincount(truth) / len(truth)
    shares = shares[shares > 0]
    return Calibration(
        expected_error(bins),
        max(map(_gap, bins)),
        bins,
        log_loss(scores, truth),
        log_loss_chance=float(np.log(len(shares))),
        log_loss_majority=float(-(shares * np.log(shares)).sum()),
    )


def log_loss(scores: Floats, truth: NDArray[np.int64]) -> float:
    """Return the mean negative log score of the true class, in nats. A class unknown to the model costs 87."""
    return float(-np.log(np.maximum(scores[np.arange(len(truth)), truth], _LEAST_SCORE)).mean())


def tempered(scores: Floats, temperature: float) -> Floats:
    """Return scores [N, classes] scaled to softmax(logits / temperature); a score of 0 stays 0."""
    logits = np.log(np.maximum(scores, _LEAST_SCORE)) / temperature
    powers = np.where(scores > 0, np.exp(logits - logits.max(axis=1, keepdims=True)), 0.0)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class NoTemperatureError(ConfigError):
    """No temperature fits these rows. The message states the reason, and says if more rows would help."""


def fit_temperature(scores: Floats, truth: NDArray[np.int64]) -> float:
    """Find the temperature with the least log loss, between 0.05 and 20.

    Rows whose true class the model does not know (its score is 0 in every row) carry no information about a temperature
    and are ignored.

    Raises: NoTemperatureError when there are too few rows, the scores are worse than chance, or the best temperature is
        at a bound.
    """
    known = np.asarray((scores > 0).any(axis=0))[truth]
    if known.sum() < LEAST_ROWS:
        unknown = (
            f"; {int((~known).sum()):,} more have a true class that the model does not know" if (~known).any() else ""
        )
        raise NoTemperatureError(
            f"a temperature needs {LEAST_ROWS} labelled rows; the output has {int(known.sum())}{unknown}"
        )
    scores, truth = scores[known], truth[known]
    if _lead_of_truth(scores, truth) <= 0:
        raise NoTemperatureError(f"no temperature fits: {_worse_than_chance(scores, truth)}")
    bounds = (np.log(_BOUNDS[0]), np.log(_BOUNDS[1]))
    best = minimize_scalar(
        lambda x: log_loss(tempered(scores, float(np.exp(x))), truth), bounds=bounds, method="bounded"
    )
    temperature = float(np.exp(best.x))
    if temperature <= _BOUNDS[0] * 1.01:
        raise NoTemperatureError(
            f"no temperature from {_BOUNDS[0]:g} to {_BOUNDS[1]:g} fits: {_too_low(scores, truth)}"
        )
    if temperature >= _BOUNDS[1] / 1.01:
        raise NoTemperatureError(
            f"no temperature from {_BOUNDS[0]:g} to {_BOUNDS[1]:g} fits: {_too_high(scores, truth)}"
        )
    return temperature


def _lead_of_truth(scores: Floats, truth: NDArray[np.int64]) -> float:
    """Return the mean logit of the true class minus the mean logit of all classes the model knows.

    This is the negated derivative of the log loss with respect to 1/T at infinite T. The loss is convex in 1/T, so if
    the result is not positive, no temperature is better than equal scores for all classes.
    """
    classes = np.asarray((scores > 0).any(axis=0))
    logits = np.log(np.maximum(scores, _LEAST_SCORE))
    return float((logits[np.arange(len(truth)), truth] - logits[:, classes].mean(axis=1)).mean())


def _worse_than_chance(scores: Floats, truth: NDArray[np.int64]) -> str:
    return (
        f"the scores are worse than chance: {_quality(scores, truth)}, and no temperature gives a lower log loss than equal "
        "scores. More rows would not help; check that the labels are those the model predicts, and that the model suits "
        "these rows"
    )


def _too_low(scores: Floats, truth: NDArray[np.int64]) -> str:
    if (scores.argmax(axis=1) == truth).all():
        return (
            f"all {len(truth):,} labels are right, so the lowest temperature is always the best; add rows with some wrong "
            "labels"
        )
    return f"the best one is lower. The confidences are far below the accuracy: {_quality(scores, truth)}"


def _too_high(scores: Floats, truth: NDArray[np.int64]) -> str:
    return (
        "the best one is higher. The confidences are far above the accuracy, or hardly depend on the true class: "
        f"{_quality(scores, truth)}"
    )


def _quality(scores: Floats, truth: NDArray[np.int64]) -> str:
    classes = int((scores > 0).any(axis=0).sum())
    right = float((scores.argmax(axis=1) == truth).mean())
    return (
        f"of {len(truth):,} rows {100 * right:.1f} % are labelled right, with a mean confidence of "
        f"{100 * float(scores.max(axis=1).mean()):.1f} % and a log loss of {log_loss(scores, truth):.2f} (equal scores for "
        f"{classes} classes: {np.log(classes):.2f})"
    )


def fit(
    scores: Floats, truth: NDArray[np.int64], predicted: NDArray[np.int64], groups: NDArray[np.int64], *, output: str
) -> Fit:
    """Fit a temperature, and evaluate it on the same rows and, by cross-validation, on held-out rows.

    Args:
        groups: [N], the recording of each row; no fold splits a recording.
        output: the output of the rows, which the result names.
    Raises: NoTemperatureError, like `fit_temperature`.
    """
    temperature = fit_temperature(scores, truth)
    right = truth == predicted

    def figures(each: Floats) -> CalibrationFigures:
        return CalibrationFigures(log_loss(each, truth), expected_error(reliability(each.max(axis=1), right)))

    held_out = _cross_fitted(scores, truth, groups)
    return Fit(
        temperature=temperature,
        rows=len(truth),
        before=figures(scores),
        after=figures(tempered(scores, temperature)),
        cross_validated=None if held_out is None else figures(held_out),
        output=output,
    )


def _cross_fitted(scores: Floats, truth: NDArray[np.int64], groups: NDArray[np.int64]) -> Floats | None:
    """Return the scores of each fold calibrated on the other folds, or None when a fit is impossible."""
    if len(np.unique(groups)) < _FOLDS:
        return None
    held_out = np.empty_like(scores)
    try:
        for fitted, rest in GroupKFold(_FOLDS).split(scores, groups=groups):
            held_out[rest] = tempered(scores[rest], fit_temperature(scores[fitted], truth[fitted]))
    except NoTemperatureError:
        return None
    return held_out

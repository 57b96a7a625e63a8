"""Whether a confidence of 0.8 is right eight times in ten, and the temperature that makes it more nearly so.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 2 (expected calibration error, 15 bins of equal
width) and 4.2 (temperature scaling). Scores are softmax outputs, so their logarithms are the logits up to a constant that
softmax takes out again: dividing by a temperature needs no logits. The order of a row's scores stays, and so its label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.model_selection import GroupKFold

from pipeline.errors import ConfigError

BINS = 15
LEAST_ROWS = 50
"""Fewer labelled rows fix no temperature worth applying."""
_FOLDS = 5
_BOUNDS = (0.05, 20.0)
_LEAST_SCORE = 1e-38  # float32 has no smaller number with all its digits
Floats = NDArray[np.float64]


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Calibration error and the points of a reliability diagram.

    Args:
        confidence: [N], of the label.
        right: [N], whether the label is true.
    """
    bounded = np.clip(confidence, 0.0, 1.0)
    accuracy, mean = calibration_curve(right, bounded, n_bins=BINS, strategy="uniform")
    edges = np.linspace(0.0, 1.0, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], bounded), minlength=BINS)  # calibration_curve's own bins
    filled = np.flatnonzero(counts)
    bins = [
        {"low": float(edges[number]), "high": float(edges[number + 1]), "rows": int(counts[number]),
         "confidence": float(m), "accuracy": float(a)}
        for number, m, a in zip(filled, mean, accuracy, strict=True)
    ]  # fmt: skip
    gaps = np.abs(accuracy - mean)
    error = float((gaps * counts[filled]).sum() / len(right))
    return {"expected_error": error, "largest_error": float(gaps.max()), "bins": bins}


def log_loss(scores: Floats, truth: NDArray[np.int64]) -> float:
    """Mean negative logarithm of the score of the true class, in nats; a class the model does not know costs 87."""
    return float(-np.log(np.maximum(scores[np.arange(len(truth)), truth], _LEAST_SCORE)).mean())


def tempered(scores: Floats, temperature: float) -> Floats:
    """Scores [N, classes] as softmax(logits / temperature) gives them; a score of 0 stays 0 in effect."""
    logits = np.log(np.maximum(scores, _LEAST_SCORE)) / temperature
    powers = np.where(scores > 0, np.exp(logits - logits.max(axis=1, keepdims=True)), 0.0)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(scores: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature with the least log loss, found between 0.05 and 20.

    Rows whose true class the model does not know say nothing on a temperature and are left out.

    Raises: ConfigError when there are too few rows, or the best temperature is at a bound: nearly every label right, or scores
        that know nothing.
    """
    known = scores[np.arange(len(truth)), truth] > 0
    if known.sum() < LEAST_ROWS:
        raise ConfigError(f"a temperature needs {LEAST_ROWS} labelled rows, {int(known.sum())} are there")
    scores, truth = scores[known], truth[known]
    bounds = (np.log(_BOUNDS[0]), np.log(_BOUNDS[1]))
    found = minimize_scalar(
        lambda x: log_loss(tempered(scores, float(np.exp(x))), truth), bounds=bounds, method="bounded"
    )
    temperature = float(np.exp(found.x))
    if not _BOUNDS[0] * 1.01 < temperature < _BOUNDS[1] / 1.01:
        raise ConfigError(
            f"no temperature between {_BOUNDS[0]:g} and {_BOUNDS[1]:g} fits: {len(truth):,} rows are too few for how often "
            "the labels are right or wrong"
        )
    return temperature


def fit(
    scores: Floats, truth: NDArray[np.int64], predicted: NDArray[np.int64], groups: NDArray[np.int64]
) -> dict[str, Any]:
    """A temperature, and what it gives on the rows it was fitted on and, by cross-validation, on rows it was not.

    `cross_validated` is None where a fold is too small to fit one.

    Args:
        groups: [N], the recording of each row, which no fold cuts in two.
    Raises: ConfigError as `fit_temperature` does.
    """
    temperature = fit_temperature(scores, truth)
    right = truth == predicted

    def figures(each: Floats) -> dict[str, float]:
        error = reliability(each.max(axis=1), right)["expected_error"]
        return {"log_loss": log_loss(each, truth), "expected_error": error}

    unseen = _cross_fitted(scores, truth, groups)
    return {
        "temperature": temperature,
        "rows": len(truth),
        "before": figures(scores),
        "after": figures(tempered(scores, temperature)),
        "cross_validated": None if unseen is None else figures(unseen),
    }


def _cross_fitted(scores: Floats, truth: NDArray[np.int64], groups: NDArray[np.int64]) -> Floats | None:
    """Scores that were each calibrated by the rows of the other folds."""
    if len(np.unique(groups)) < _FOLDS:
        return None
    unseen = np.empty_like(scores)
    try:
        for fitted, held in GroupKFold(_FOLDS).split(scores, groups=groups):
            unseen[held] = tempered(scores[held], fit_temperature(scores[fitted], truth[fitted]))
    except ConfigError:
        return None
    return unseen

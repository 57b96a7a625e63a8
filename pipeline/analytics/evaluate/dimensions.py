"""Agreement of predicted arousal, valence and dominance with labels: CCC, Pearson correlation and RMSE.

Source of the concordance correlation coefficient: Lin 1989, "A concordance correlation coefficient to evaluate
reproducibility", with population variances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.analytics.evaluate.bootstrap import Bootstrap, Counts, interval, sums_by_group
from pipeline.analytics.evaluate.results import Bounds, Difference, Estimate, Spread, defined

DIMENSIONS = ("arousal", "valence", "dominance")
METRICS = ("ccc", "pearson", "rmse")
Floats = NDArray[np.float64]


def figures_of(moments: Floats) -> Floats:
    """Compute `METRICS` from moments [B, 6] as of `moments_of`. Returns: float64 [B, 3]; NaN where undefined."""
    count, x, y, xx, yy, xy = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = x / count, y / count
        var_x, var_y = np.maximum(xx / count - mean_x**2, 0.0), np.maximum(yy / count - mean_y**2, 0.0)
        covariance = xy / count - mean_x * mean_y
        ccc = 2 * covariance / (var_x + var_y + (mean_x - mean_y) ** 2)
        pearson = np.where(var_x * var_y > 0, covariance / np.sqrt(var_x * var_y), np.nan)
        rmse = np.sqrt(np.maximum((xx - 2 * xy + yy) / count, 0.0))
    return np.stack([ccc, pearson, rmse], axis=1)


def moments_of(truth: Floats, predicted: Floats, centre: float) -> Floats:
    """Return the moments of each row [N, 6] around `centre`, which keeps the differences of sums precise."""
    x, y = truth - centre, predicted - centre
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def estimates(truth: Floats, predicted: Floats, groups: Counts, bootstrap: Bootstrap) -> Mapping[str, Estimate]:
    """Compute `METRICS` with bootstrap intervals and baselines (`_guesses`)."""
    moments = moments_of(truth, predicted, float(truth.mean()))
    values = figures_of(moments.sum(axis=0, keepdims=True))[0]
    bounds: list[Bounds] = [(None, None)] * len(METRICS)
    if bootstrap.possible(groups):
        bounds = [interval(column) for column in figures_of(bootstrap.sums(moments, groups)).T]
    return {
        name: Estimate(defined(value), low, high, *guesses)
        for name, value, (low, high), guesses in zip(METRICS, values, bounds, _guesses(truth), strict=True)
    }


def _guesses(truth: Floats) -> list[tuple[float | None, float | None]]:
    """Return the figures of two baselines: a label drawn at random for each row, and the mean label for every row.

    Of the first, these are expectations; the second has no correlation.
    """
    deviation = float(truth.std())
    return [(0.0, 0.0), (0.0, None), (math.sqrt(2) * deviation, deviation)]


def spreads(truth: Floats, predicted: Floats, speakers: Counts) -> Mapping[str, Spread]:
    """Return mean and standard deviation of `METRICS` over speakers; speakers whose figure is undefined are left out."""
    moments = moments_of(truth, predicted, float(truth.mean()))
    return {
        name: Spread.of(column)
        for name, column in zip(METRICS, figures_of(sums_by_group(moments, speakers)).T, strict=True)
    }


def differences(
    truth: Floats, predictions: tuple[Floats, Floats], groups: Counts, bootstrap: Bootstrap
) -> Mapping[str, Difference]:
    """Compare two predictions of the same rows: second minus first, with intervals over the same draws."""
    centre = float(truth.mean())
    moments = [moments_of(truth, each, centre) for each in predictions]
    first, second = (figures_of(each.sum(axis=0, keepdims=True))[0] for each in moments)
    bounds: list[Bounds] = [(None, None)] * len(METRICS)
    if bootstrap.possible(groups):
        drawn = [figures_of(bootstrap.sums(each, groups)) for each in moments]
        bounds = [interval(column) for column in (drawn[1] - drawn[0]).T]
    return {
        name: Difference.of(one, other, bounds_, guesses)
        for name, one, other, bounds_, guesses in zip(METRICS, first, second, bounds, _guesses(truth), strict=True)
    }

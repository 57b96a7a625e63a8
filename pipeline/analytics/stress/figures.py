"""Figures of a clean run and of a condition over the same clips, and the interval of their difference.

A statistic is a function from weights of clips, float64 [B, N], to a figure for each row of weights, [B]. A weight says how
often a resample of the bootstrap draws a clip. All resamples are computed at once, in 8 bytes for each and each clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analytics.evaluate.bootstrap import draws, interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
_NO_SPREAD = 1e-12
"""Variance, on a scale of 0 to 1, below which values count as constant and CCC as undefined."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Bootstrap of groups of clips that are drawn whole.

    Attributes:
        groups: int64 [N], number of the group of each clip.
        resamples: 0 for no intervals.
        seed: of the draws; equal clips are drawn for every condition and metric.
    """

    groups: NDArray[np.int64]
    resamples: int
    seed: int

    def interval_of(self, difference: Statistic, kept: NDArray[np.bool_]) -> tuple[float | None, float | None]:
        """Return the percentile interval of a statistic over the kept clips; None with fewer than two groups."""
        numbers, groups = np.unique(self.groups[kept], return_inverse=True)
        if not self.resamples or len(numbers) < 2:
            return None, None
        weights = np.zeros((self.resamples, len(kept)))
        weights[:, kept] = np.stack(list(draws(len(numbers), resamples=self.resamples, seed=self.seed)))[:, groups]
        drawn = difference(weights)
        return interval(drawn)


def figure(before: Statistic, after: Statistic, kept: NDArray[np.bool_], bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the clean figure, the figure under a condition, their difference (clean minus condition) and its interval.

    Args:
        kept: bool [N], clips that both runs have a prediction for. Without any, or where a figure is undefined, all are None.
    """
    weights = kept.astype(np.float64)[np.newaxis]
    clean, degraded = (float(each(weights)[0]) for each in (before, after)) if kept.any() else (np.nan, np.nan)
    if np.isnan(clean) or np.isnan(degraded):
        return dict.fromkeys(("clean", "figure", "loss", "low", "high"))
    low, high = bootstrap.interval_of(lambda drawn: before(drawn) - after(drawn), kept)
    return {"clean": clean, "figure": degraded, "loss": clean - degraded, "low": low, "high": high}


def share(marked: Sequence[bool]) -> Statistic:
    """Return the statistic that computes the share of marked clips."""
    marks = np.array(marked, np.float64)
    return lambda weights: weights @ marks / weights.sum(axis=1)


def uar(truth: Sequence[str | None], predicted: Sequence[str | None]) -> Statistic:
    """Return the statistic that computes the unweighted average recall over the true classes that are drawn."""
    classes = sorted({label for label in truth if label is not None})
    of_class = np.array([[label == each for each in classes] for label in truth], np.float64)
    right = np.array([[p == t == each for each in classes] for t, p in zip(truth, predicted, strict=True)], np.float64)

    def statistic(weights: Floats) -> Floats:
        support = weights @ of_class
        recall = weights @ right / np.maximum(support, 1)  # 0 of 0 is 0
        average: Floats = recall.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)
        return average

    return statistic


def ccc(truth: Floats, predicted: Floats) -> Statistic:
    """Return the statistic that computes the concordance correlation coefficient, with variances over N.

    It is NaN where neither varies. Values may be NaN where the weights are 0.
    Source: Lin 1989, Biometrics 45(1), equation 1: 2 cov / (var + var + (difference of means)^2).
    """
    x, y = np.nan_to_num(truth), np.nan_to_num(predicted)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        mean_x, mean_y = weights @ x / total, weights @ y / total
        covariance = weights @ (x * y) / total - mean_x * mean_y
        variances = weights @ (x * x) / total - mean_x**2 + weights @ (y * y) / total - mean_y**2
        spread = variances + (mean_x - mean_y) ** 2
        return np.where(spread > _NO_SPREAD, 2 * covariance / np.maximum(spread, _NO_SPREAD), np.nan)

    return statistic

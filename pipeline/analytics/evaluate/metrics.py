"""Accuracy, precision, F1 and recall of labels, by class and overall, with bootstrap intervals.

Reported values come from scikit-learn. Resamples are thousands of small confusion matrices, for which scikit-learn
takes 3 ms each; `scores_of` computes all of them at once, and a test compares both implementations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from pipeline.analytics.evaluate.results import ClassFigures, Confusion, Estimate

METRICS = ("accuracy", "weighted_precision", "weighted_f1", "macro_f1", "uar")
"""Metrics of the model card, and the unweighted average recall over the classes that occur."""
INTERVAL = 0.95
"""Probability mass of the intervals."""
Counts = NDArray[np.int64]


def summary(truth: Counts, predicted: Counts) -> dict[str, float]:
    """Compute `METRICS`, as fractions, over the classes that occur in either array, like scikit-learn.

    Args:
        truth, predicted: indices of classes, at least one.
    """
    weighted = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    recall = precision_recall_fscore_support(
        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
    )
    figures = (accuracy_score(truth, predicted), weighted[0], weighted[2], macro[2], recall[1])
    return {name: float(figure) for name, figure in zip(METRICS, figures, strict=True)}


def per_class(truth: Counts, predicted: Counts, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    """Return precision, recall, F1 and number of rows of each class that occurs, in the order of `classes`."""
    occurring = np.union1d(truth, predicted)
    columns = precision_recall_fscore_support(truth, predicted, labels=occurring, average=None, zero_division=0)
    return tuple(
        ClassFigures(classes[number], float(p), float(r), float(f), int(n))
        for number, p, r, f, n in zip(occurring, *columns, strict=True)
    )


def confusion(truth: Counts, predicted: Counts, classes: Sequence[str]) -> Confusion:
    """Return the confusion matrix of the classes that occur, in the order of `classes`."""
    occurring = np.union1d(truth, predicted)
    everything = confusion_matrix(truth, predicted, labels=np.arange(len(classes)))
    counts = everything[np.ix_(occurring, occurring)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Confusion(
        tuple(classes[number] for number in occurring),
        tuple(map(tuple, counts.tolist())),
        tuple(map(tuple, shares.round(6).tolist())),
    )


def resample(cells: Counts, groups: Counts, num_cells: int, *, resamples: int, seed: int) -> Counts:
    """Draw bootstrap resamples: as many groups as there are, with replacement, and count the cells of their rows.

    Args:
        cells: int64 [N], the cell of each row, below `num_cells`.
        groups: int64 [N] from 0 up without gaps; rows of a group are drawn together, because they are not independent.
    Returns: int64 [resamples, num_cells].
    """
    num_groups = int(groups.max()) + 1
    if num_groups == len(groups):  # one row per group: one multinomial draw is equivalent
        shares = np.bincount(cells, minlength=num_cells) / len(cells)
        return np.random.default_rng(seed).multinomial(len(cells), shares, size=resamples).astype(np.int64)
    drawn = np.empty((resamples, num_cells), np.int64)
    for number, times in enumerate(draws(num_groups, resamples=resamples, seed=seed)):
        drawn[number] = np.bincount(cells, weights=times[groups], minlength=num_cells).astype(np.int64)
    return drawn


def draws(num_groups: int, *, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield, for each resample, how often each group is drawn: int64 [num_groups] with sum num_groups."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(random.integers(0, num_groups, num_groups), minlength=num_groups)


def scores_of(matrices: Counts) -> NDArray[np.float64]:
    """Compute `METRICS` of many confusion matrices [B, classes, classes]. Returns: float64 [B, metrics]."""
    hits = np.einsum("bii->bi", matrices).astype(np.float64)
    support, assigned = matrices.sum(axis=2), matrices.sum(axis=1)
    precision = hits / np.maximum(assigned, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + assigned, 1)
    rows = np.maximum(support.sum(axis=1), 1)
    occurring = np.maximum(((support + assigned) > 0).sum(axis=1), 1)
    weighted = [(figure * support).sum(axis=1) / rows for figure in (precision, f1)]
    uar = recall.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)
    return np.stack([hits.sum(axis=1) / rows, *weighted, f1.sum(axis=1) / occurring, uar], axis=1)


def interval(figures: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of resampled values."""
    low, high = np.quantile(figures, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def with_intervals(
    truth: Counts, predicted: Counts, groups: Counts, num_classes: int, *, resamples: int, seed: int
) -> Mapping[str, Estimate]:
    """Compute `summary` with a bootstrap interval of each metric; the bounds are None without resamples."""
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(METRICS)
    if resamples:
        drawn = resample(truth * num_classes + predicted, groups, num_classes**2, resamples=resamples, seed=seed)
        bounds = [interval(column) for column in scores_of(drawn.reshape(-1, num_classes, num_classes)).T]
    figures = summary(truth, predicted)
    return {name: Estimate(figures[name], low, high) for name, (low, high) in zip(METRICS, bounds, strict=True)}

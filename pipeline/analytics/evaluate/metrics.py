"""Accuracy, precision, F1, recall and kappa of labels, by class and overall, with bootstrap intervals and baselines.

Reported values come from scikit-learn. Resamples are thousands of small confusion matrices, for which scikit-learn
takes 3 ms each; `scores_of` computes all of them at once, and a test compares both implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from pipeline.analytics.evaluate.bootstrap import Bootstrap, Counts, interval
from pipeline.analytics.evaluate.results import Bounds, ClassFigures, Confusion, Estimate, Spread, defined

METRICS = ("accuracy", "weighted_precision", "weighted_f1", "macro_f1", "uar", "kappa")
"""Metrics of the model card, the unweighted average recall over the classes that occur, and Cohen's kappa."""
CLASS_METRICS = ("precision", "recall", "f1")
Floats = NDArray[np.float64]


def summary(truth: Counts, predicted: Counts) -> dict[str, float]:
    """Compute `METRICS`, as fractions, over the classes that occur in either array, like scikit-learn.

    Kappa is NaN where one class alone occurs.

    Args:
        truth, predicted: indices of classes, at least one.
    """
    weighted = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    recall = precision_recall_fscore_support(
        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
    )
    kappa = scores_of(matrices_of(truth, predicted, np.zeros_like(truth), int(max(truth.max(), predicted.max())) + 1))
    figures = (accuracy_score(truth, predicted), weighted[0], weighted[2], macro[2], recall[1], kappa[0, -1])
    return {name: float(figure) for name, figure in zip(METRICS, figures, strict=True)}


def matrices_of(truth: Counts, predicted: Counts, groups: Counts, num_classes: int) -> Counts:
    """Return the confusion matrix of each group: int64 [groups, classes, classes]."""
    num_groups = int(groups.max()) + 1
    cells = (groups * num_classes + truth) * num_classes + predicted
    counts = np.bincount(cells, minlength=num_groups * num_classes**2)
    return counts.reshape(num_groups, num_classes, num_classes).astype(np.int64)


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


def scores_of(matrices: NDArray[np.int64] | Floats) -> Floats:
    """Compute `METRICS` of many confusion matrices [B, classes, classes]. Returns: float64 [B, metrics]."""
    support, assigned = matrices.sum(axis=2), matrices.sum(axis=1)
    precision, recall, f1 = (np.nan_to_num(figure) for figure in class_scores_of(matrices))
    rows = np.maximum(support.sum(axis=1), 1)
    accuracy = np.einsum("bii->b", matrices) / rows
    occurring = np.maximum(((support + assigned) > 0).sum(axis=1), 1)
    weighted = [(figure * support).sum(axis=1) / rows for figure in (precision, f1)]
    uar = recall.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)
    by_chance = (support * assigned).sum(axis=1) / rows.astype(np.float64) ** 2
    kappa = _ratio(accuracy - by_chance, 1 - by_chance)
    return np.stack([accuracy, *weighted, f1.sum(axis=1) / occurring, uar, kappa], axis=1)


def class_scores_of(matrices: NDArray[np.int64] | Floats) -> Floats:
    """Compute `CLASS_METRICS` of each class of many confusion matrices [B, classes, classes].

    Returns: float64 [3, B, classes]; NaN for the precision of a class that is never predicted, the recall of one without
        rows, and the F1 of one without either.
    """
    hits = np.einsum("bii->bi", matrices).astype(np.float64)
    support, assigned = matrices.sum(axis=2), matrices.sum(axis=1)
    return np.stack([_ratio(hits, assigned), _ratio(hits, support), _ratio(2 * hits, support + assigned)])


def _ratio(part: Floats, whole: NDArray[np.int64] | Floats) -> Floats:
    """Divide, with NaN where the denominator is 0."""
    quotient: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return quotient


def baselines(truth: Counts, num_classes: int) -> Floats:
    """Return the confusion matrices of two baselines: float64 [2, classes, classes].

    The first is the expectation of guesses with equal probabilities for the classes that occur in `truth`, the second
    predicts the most frequent class for every row.
    """
    support = np.bincount(truth, minlength=num_classes).astype(np.float64)
    guesses = (support > 0) / (support > 0).sum()
    majority = np.eye(num_classes)[support.argmax()]
    matrices: Floats = support[None, :, None] * np.stack([guesses, majority])[:, None, :]
    return matrices


def estimates(
    truth: Counts, predicted: Counts, groups: Counts, classes: Sequence[str], bootstrap: Bootstrap
) -> tuple[dict[str, Estimate], tuple[ClassFigures, ...]]:
    """Compute `METRICS`, and `CLASS_METRICS` of each class that occurs, with intervals and baselines."""
    size = len(classes)
    drawn = np.zeros((0, size, size), np.int64)
    if bootstrap.possible(groups):
        drawn = bootstrap.cells(truth * size + predicted, groups, size**2).reshape(-1, size, size)
    guessed = baselines(truth, size)
    overall = {
        name: Estimate(defined(value), *interval(column), *map(defined, guesses))
        for (name, value), column, guesses in zip(
            summary(truth, predicted).items(), scores_of(drawn).T, scores_of(guessed).T, strict=True
        )
    }
    return overall, _per_class(truth, predicted, classes, class_scores_of(drawn), class_scores_of(guessed))


def _per_class(
    truth: Counts, predicted: Counts, classes: Sequence[str], drawn: Floats, guessed: Floats
) -> tuple[ClassFigures, ...]:
    """Return the figures of each class that occurs, in the order of `classes`.

    Args:
        drawn, guessed: float64 [3, B, classes], of resamples and of the two baselines; a guess that never predicts a class
            has a precision of 0.
    """
    occurring = np.union1d(truth, predicted)
    *columns, supports = precision_recall_fscore_support(
        truth, predicted, labels=occurring, average=None, zero_division=0
    )
    rows = []
    for place, (number, support) in enumerate(zip(occurring, supports, strict=True)):
        values = [float(column[place]) for column in columns]
        bounds: list[Bounds] = [interval(figures[:, number]) for figures in drawn]
        figures = {
            name: Estimate(value, *each, *map(float, np.nan_to_num(guesses[:, number])))
            for name, value, each, guesses in zip(CLASS_METRICS, values, bounds, guessed, strict=True)
        }
        precision, recall, f1 = values
        rows.append(ClassFigures(classes[number], precision, recall, f1, int(support), figures))
    return tuple(rows)


def spreads(truth: Counts, predicted: Counts, speakers: Counts, num_classes: int) -> Mapping[str, Spread]:
    """Return mean and standard deviation of `METRICS` over speakers; speakers whose figure is undefined are left out."""
    figures = scores_of(matrices_of(truth, predicted, speakers, num_classes))
    return {name: Spread.of(column) for name, column in zip(METRICS, figures.T, strict=True)}

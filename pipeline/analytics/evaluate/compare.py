"""Paired comparison of outputs on the utterances they share, with a significance test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binomtest

from pipeline.analytics.evaluate import dimensions
from pipeline.analytics.evaluate.bootstrap import Bootstrap, interval
from pipeline.analytics.evaluate.labelled import Labelled, Rated
from pipeline.analytics.evaluate.metrics import METRICS, baselines, scores_of, summary
from pipeline.analytics.evaluate.results import Bounds, Comparison, Difference, DimensionDifference, PairedTest, defined
from pipeline.analytics.evaluate.words import Errors, compare_rates


def compare(first: Labelled, second: Labelled, errors: Sequence[Errors], bootstrap: Bootstrap) -> Comparison:
    """Compare two outputs, paired by utterance id; differences are second minus first.

    Only shared utterances with the same true label in both outputs count. The test is McNemar's exact test: the
    probability of so uneven a split of the utterances that only one output labels correctly, if both are equally good.
    It assumes independent utterances. Where recordings are cut into many utterances, use the intervals instead:
    differences have bootstrap intervals over the same draws for both outputs. If no utterance counts, all results but
    the counts, `words` and `dimensions` are None.

    Args:
        errors: word errors by recording, of the first output and of the second; compared whatever the labels are.
    """
    second = _with_classes(second, first.classes)
    first = _with_classes(first, second.classes)
    rows = _shared(first.table, second.table)
    same = first.truth[rows[:, 0]] == second.truth[rows[:, 1]]
    pairs = rows[same]
    without_rows = Comparison(
        first=first.output,
        second=second.output,
        rows=len(pairs),
        only_in_first=len(first) - len(rows),
        only_in_second=len(second) - len(rows),
        labels_differ=int((~same).sum()),
        metrics=None,
        test=None,
        agreement=None,
        largest_score_difference=None,
        words=compare_rates(
            errors,
            [each.column("recording_id") for each in (first, second)],
            bootstrap.groups_of(first.table),
            bootstrap,
        ),
        dimensions=_dimensions(first, second, bootstrap),
    )
    if not len(pairs):
        return without_rows
    one, other = first.take(pairs[:, 0]), second.take(pairs[:, 1])
    return replace(
        without_rows,
        metrics=_differences(one, other, bootstrap),
        test=_mcnemar(one, other),
        agreement=float((one.predicted == other.predicted).mean()),
        largest_score_difference=float(np.abs(one.scores - other.scores).max()),
    )


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Add p-values corrected for the number of comparisons.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected = iter(corrected_by_holm([each.test.p_value for each in comparisons if each.test]))
    return tuple(
        replace(each, test=replace(each.test, p_value_holm=next(corrected))) if each.test else each
        for each in comparisons
    )


def corrected_by_holm(p_values: Sequence[float]) -> list[float]:
    """Multiply the smallest p-value by their number, the next by one less and so on, without changing their order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def _with_classes(labelled: Labelled, others: tuple[str, ...]) -> Labelled:
    """Return the rows with the classes of another output added, so that both have the same numbers."""
    names = tuple(dict.fromkeys([*others, *labelled.classes]))
    if names == labelled.classes:
        return labelled
    numbers = np.array([names.index(name) for name in labelled.classes], np.int64)
    scores = np.zeros((len(labelled), len(names)))
    scores[:, numbers] = labelled.scores
    return replace(
        labelled, classes=names, truth=numbers[labelled.truth], predicted=numbers[labelled.predicted], scores=scores
    )


def _shared(first: pa.Table, second: pa.Table) -> NDArray[np.int64]:
    """Return the rows of the utterances in both tables: int64 [N, 2]."""
    places = {name: row for row, name in enumerate(second["utterance_id"].to_pylist())}
    ids = enumerate(first["utterance_id"].to_pylist())
    return np.array([(row, places[name]) for row, name in ids if name in places], np.int64).reshape(-1, 2)


def _mcnemar(one: Labelled, other: Labelled) -> PairedTest:
    right = [each.predicted == each.truth for each in (one, other)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedTest("McNemar, exact", only_first, only_second, p_value)


def _differences(one: Labelled, other: Labelled, bootstrap: Bootstrap) -> dict[str, Difference]:
    size = len(one.classes)
    groups = bootstrap.groups_of(one.table)
    bounds: list[Bounds] = [(None, None)] * len(METRICS)
    if bootstrap.possible(groups):
        # count combinations of labels that occur: classes ** 3 may be many
        cells = np.stack([one.truth * size + each.predicted for each in (one, other)], axis=1)
        combinations, of_row = np.unique(cells, axis=0, return_inverse=True)
        drawn = bootstrap.cells(of_row.reshape(-1), groups, len(combinations))
        matrices = np.zeros((2, size**2, bootstrap.resamples), np.int64)
        for matrix, of_combination in zip(matrices, combinations.T, strict=True):
            np.add.at(matrix, of_combination, drawn.T)
        first, second = (scores_of(matrix.T.reshape(-1, size, size)) for matrix in matrices)
        bounds = [interval(column) for column in (second - first).T]
    figures = [summary(each.truth, each.predicted) for each in (one, other)]
    guessed = scores_of(baselines(one.truth, size)).T
    return {
        name: Difference.of(figures[0][name], figures[1][name], of_metric, (defined(chance), defined(majority)))
        for name, of_metric, (chance, majority) in zip(METRICS, bounds, guessed, strict=True)
    }


def _dimensions(first: Labelled, second: Labelled, bootstrap: Bootstrap) -> tuple[DimensionDifference, ...]:
    others = {each.dimension: each for each in second.rated}
    pairs = [(each, others[each.dimension]) for each in first.rated if each.dimension in others]
    return tuple(difference for one, other in pairs if (difference := _dimension(one, other, bootstrap)))


def _dimension(first: Rated, second: Rated, bootstrap: Bootstrap) -> DimensionDifference | None:
    rows = _shared(first.table, second.table)
    pairs = rows[np.isclose(first.truth[rows[:, 0]], second.truth[rows[:, 1]])]
    if not len(pairs):
        return None
    one, other = first.take(pairs[:, 0]), second.take(pairs[:, 1])
    groups = bootstrap.groups_of(one.table)
    metrics = dimensions.differences(one.truth, (one.predicted, other.predicted), groups, bootstrap)
    return DimensionDifference(one.dimension, len(pairs), metrics)

"""Paired comparison of two outputs on the utterances they share, with a significance test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.metrics import METRICS, interval, resample, scores_of, summary
from pipeline.analytics.evaluate.results import Comparison, Difference, PairedTest
from pipeline.analytics.evaluate.words import Errors, compare_rates
from pipeline.schema import EMOTIONS


def compare(
    first: Labelled, second: Labelled, errors: Sequence[Errors], *, resample_by: str, resamples: int, seed: int
) -> Comparison:
    """Compare two outputs, paired by utterance id; differences are second minus first.

    Only shared utterances with the same true label in both outputs count. The test is McNemar's exact test: the
    probability of so uneven a split of the utterances that only one output labels correctly, if both are equally good.
    It assumes independent utterances. Where recordings are cut into many utterances, use the intervals instead:
    differences have bootstrap intervals over the same draws for both outputs, grouped by `resample_by`. If no utterance
    counts, all results but the counts and `words` are None.

    Args:
        errors: word errors by recording, of the first output and of the second; compared whatever the labels are.
    """
    rows = _shared(first, second)
    same = np.array([first.truth[i] == second.truth[j] for i, j in rows], dtype=bool)
    pairs = np.array(rows, np.int64).reshape(-1, 2)[same]
    without_rows = Comparison(
        first=first.output, second=second.output, rows=len(pairs), only_in_first=len(first) - len(rows),
        only_in_second=len(second) - len(rows), labels_differ=int((~same).sum()), metrics=None, test=None,
        agreement=None, largest_score_difference=None,
        words=compare_rates(
            errors, [each.column("recording_id") for each in (first, second)], groups_of(first, resample_by),
            resamples=resamples, seed=seed,
        ),
    )  # fmt: skip
    if not len(pairs):
        return without_rows
    one, other = first.take(pairs[:, 0]), second.take(pairs[:, 1])
    return replace(
        without_rows,
        metrics=_differences(one, other, resample_by=resample_by, resamples=resamples, seed=seed),
        test=_mcnemar(one, other),
        agreement=float((one.predicted == other.predicted).mean()),
        largest_score_difference=float(np.abs(one.scores - other.scores).max()),
    )


def _shared(first: Labelled, second: Labelled) -> list[tuple[int, int]]:
    places = {name: row for row, name in enumerate(second.column("utterance_id"))}
    return [(row, places[name]) for row, name in enumerate(first.column("utterance_id")) if name in places]


def _mcnemar(one: Labelled, other: Labelled) -> PairedTest:
    right = [each.predicted == each.truth for each in (one, other)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedTest("McNemar, exact", only_first, only_second, p_value)


def _differences(
    one: Labelled, other: Labelled, *, resample_by: str, resamples: int, seed: int
) -> dict[str, Difference]:
    figures = [summary(each.truth, each.predicted) for each in (one, other)]
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(METRICS)
    if resamples:
        size = len(EMOTIONS)
        cells = (one.truth * size + one.predicted) * size + other.predicted
        groups = groups_of(one, resample_by)
        drawn = resample(cells, groups, size**3, resamples=resamples, seed=seed).reshape(-1, *[size] * 3)
        bounds = [interval(column) for column in (scores_of(drawn.sum(axis=2)) - scores_of(drawn.sum(axis=3))).T]
    return {
        name: Difference(first=figures[0][name], second=figures[1][name], difference=figures[1][name] - figures[0][name],
                         low=low, high=high)
        for name, (low, high) in zip(METRICS, bounds, strict=True)
    }  # fmt: skip


def groups_of(labelled: Labelled, column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return each row's group, numbered from 0, by the values of a column. Nulls form one group."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(str(value), len(numbers)) for value in labelled.column(column)], np.int64)

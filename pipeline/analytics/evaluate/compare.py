"""Paired comparison of two outputs on the utterances they share, with a significance test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.metrics import CLASSES, METRICS, interval, resample, scores_of, summary
from pipeline.analytics.evaluate.words import Errors, compare_rates


def compare(
    first: Labelled, second: Labelled, errors: Sequence[Errors], *, resample_by: str, resamples: int, seed: int
) -> dict[str, Any]:
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
    found: dict[str, Any] = {
        "first": first.output,
        "second": second.output,
        "rows": len(pairs),
        "only_in_first": len(first) - len(rows),
        "only_in_second": len(second) - len(rows),
        "labels_differ": int((~same).sum()),
        "metrics": None,
        "test": None,
        "agreement": None,
        "largest_score_difference": None,
        "words": compare_rates(
            errors, [each.column("recording_id") for each in (first, second)], groups_of(first, resample_by),
            resamples=resamples, seed=seed,
        ),
    }  # fmt: skip
    if not len(pairs):
        return found
    one, other = first.take(pairs[:, 0]), second.take(pairs[:, 1])
    truth = one.truth
    right = [each.predicted == truth for each in (one, other)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    return {
        **found,
        "metrics": _differences(one, other, resample_by=resample_by, resamples=resamples, seed=seed),
        "test": {"name": "McNemar, exact", "only_first_right": only_first, "only_second_right": only_second,
                 "p_value": p_value},
        "agreement": float((one.predicted == other.predicted).mean()),
        "largest_score_difference": float(np.abs(one.scores - other.scores).max()),
    }  # fmt: skip


def _shared(first: Labelled, second: Labelled) -> list[tuple[int, int]]:
    places = {name: row for row, name in enumerate(second.column("utterance_id"))}
    return [(row, places[name]) for row, name in enumerate(first.column("utterance_id")) if name in places]


def _differences(
    one: Labelled, other: Labelled, *, resample_by: str, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    figures = [summary(each.truth, each.predicted) for each in (one, other)]
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(METRICS)
    if resamples:
        cells = (one.truth * CLASSES + one.predicted) * CLASSES + other.predicted
        groups = groups_of(one, resample_by)
        drawn = resample(cells, groups, CLASSES**3, resamples=resamples, seed=seed).reshape(-1, *[CLASSES] * 3)
        bounds = [interval(column) for column in (scores_of(drawn.sum(axis=2)) - scores_of(drawn.sum(axis=3))).T]
    return {
        name: {"first": figures[0][name], "second": figures[1][name], "difference": figures[1][name] - figures[0][name],
               "low": low, "high": high}
        for name, (low, high) in zip(METRICS, bounds, strict=True)
    }  # fmt: skip


def groups_of(labelled: Labelled, column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return each row's group, numbered from 0, by the values of a column. Nulls form one group."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(str(value), len(numbers)) for value in labelled.column(column)], np.int64)

"""Bootstrap over groups of rows: rows of a group are drawn together, because they are not independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analytics.evaluate.results import Bounds

INTERVAL = 0.95
"""Probability mass of the intervals."""
SPEAKER = "speaker"
RECORDING = "recording_id"
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Settings of the bootstrap.

    Attributes:
        resample_by: the column whose values are drawn.
        resamples: number of resamples; 0 for no intervals.
        seed: seed of the random draws.
    """

    resample_by: str
    resamples: int
    seed: int = 0

    def groups_of(self, table: pa.Table) -> Counts:
        """Return each row's group, like `groups_of` for the column to resample by."""
        return groups_of(table, self.resample_by)

    def possible(self, groups: Counts) -> bool:
        """Return whether intervals exist: one group cannot show how groups vary."""
        return self.resamples > 0 and len(groups) > 0 and int(groups.max()) > 0

    def cells(self, cells: Counts, groups: Counts, num_cells: int) -> Counts:
        """Draw as many groups as exist, with replacement, and count the cells of their rows, for each resample.

        Args:
            cells: int64 [N], the cell of each row, below `num_cells`.
            groups: int64 [N] from 0 up without gaps.
        Returns: int64 [resamples, num_cells].
        """
        num_groups = int(groups.max()) + 1
        if num_groups == len(groups):  # one row per group: one multinomial draw is equivalent
            shares = np.bincount(cells, minlength=num_cells) / len(cells)
            random = np.random.default_rng(self.seed)
            return random.multinomial(len(cells), shares, size=self.resamples).astype(np.int64)
        drawn = np.empty((self.resamples, num_cells), np.int64)
        for number, times in enumerate(draws(num_groups, resamples=self.resamples, seed=self.seed)):
            drawn[number] = np.bincount(cells, weights=times[groups], minlength=num_cells).astype(np.int64)
        return drawn

    def sums(self, values: NDArray[np.float64], groups: Counts) -> NDArray[np.float64]:
        """Draw groups like `cells`, and add up the values of their rows.

        Args:
            values: float64 [N, columns].
        Returns: float64 [resamples, columns].
        """
        by_group = sums_by_group(values, groups)
        drawn = draws(len(by_group), resamples=self.resamples, seed=self.seed)
        return np.array([times @ by_group for times in drawn]).reshape(-1, values.shape[1])


def draws(num_groups: int, *, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield, for each resample, how often each group is drawn: int64 [num_groups] with sum num_groups."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(random.integers(0, num_groups, num_groups), minlength=num_groups)


def groups_of(table: pa.Table, column: str) -> Counts:
    """Return each row's group, numbered from 0, by the values of a column; without a value, by recording."""
    numbers: dict[tuple[str, Any], int] = {}
    keys = [
        (column, str(value)) if value is not None else (RECORDING, recording)
        for value, recording in zip(table[column].to_pylist(), table[RECORDING].to_pylist(), strict=True)
    ]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def sums_by_group(values: NDArray[np.float64], groups: Counts) -> NDArray[np.float64]:
    """Add up the rows of values [N, columns] by group. Returns: float64 [groups, columns]."""
    sums = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def interval(figures: NDArray[np.float64]) -> Bounds:
    """Return the percentile interval of resampled values; undefined ones (NaN) are left out."""
    defined = figures[~np.isnan(figures)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)

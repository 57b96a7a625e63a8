"""The difference between the two channels of a recording that is mixed down, measured while it is decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIFFERENCE_DB = -30.0
"""Power of half the difference of two channels, relative to their mean, from which they differ. Lossy codecs that store mid and
side leave less than this between equal channels: MP3 at 64 kbit/s -45 dB."""


class Mixing:
    """Powers of the mean and of half the difference of two channels, added up block by block."""

    def __init__(self) -> None:
        self._mean = self._half_difference = 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        """Add a block, float32 [2, num_samples]."""
        first, second = block
        # in double precision, because a long sum of float32 squares loses the small ones
        self._mean += float(np.square((first + second) / 2).sum(dtype=np.float64))
        self._half_difference += float(np.square((first - second) / 2).sum(dtype=np.float64))

    @property
    def differs(self) -> bool:
        """Return whether the channels differ by more than what lossy codecs add; False without any block."""
        return self._half_difference > self._mean * 10 ** (_DIFFERENCE_DB / 10)

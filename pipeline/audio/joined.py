"""Join pieces of a waveform in one array that grows in place: its size once, not twice, however many pieces come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST_MORE = 1 << 22
"""Samples (16 MiB) that may be reserved too many."""


class Joined:
    """float32 samples from pieces whose number is not known before."""

    def __init__(self) -> None:
        self._samples = np.empty(0, np.float32)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, piece: NDArray[np.float32]) -> None:
        """Append a copy of the piece."""
        self.reserve(len(piece))[:] = piece

    def reserve(self, num_samples: int) -> NDArray[np.float32]:
        """Append samples, for the caller to write before the next call."""
        first, self._length = self._length, self._length + num_samples
        size = len(self._samples)
        if size == 0:
            self._samples = np.empty(num_samples, np.float32)
        elif self._length > size:
            self._resize(max(self._length, size + min(size // 4, _MOST_MORE)))
        return self._samples[first : self._length]

    def finish(self) -> NDArray[np.float32]:
        """The whole, [num_samples]."""
        if len(self._samples) != self._length:
            self._resize(self._length)
        return self._samples

    def _resize(self, size: int) -> None:
        """realloc, which moves the pages of a large array instead of copying them."""
        self._samples.resize(size, refcheck=False)

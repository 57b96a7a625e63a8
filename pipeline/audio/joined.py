"""A growing float32 array that joins pieces of a waveform and holds its samples once, not twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST_MORE = 1 << 22
"""Largest number of samples reserved in excess (16 MiB)."""


class Joined:
    """Samples of a waveform that arrives in an unknown number of pieces."""

    def __init__(self) -> None:
        self._samples = np.empty(0, np.float32)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, piece: NDArray[np.float32]) -> None:
        """Append a copy of the piece."""
        self.reserve(len(piece))[:] = piece

    def reserve(self, num_samples: int) -> NDArray[np.float32]:
        """Append samples and return them for the caller to write before the next call."""
        first, self._length = self._length, self._length + num_samples
        size = len(self._samples)
        if size == 0:
            self._samples = np.empty(num_samples, np.float32)
        elif self._length > size:
            self._resize(max(self._length, size + min(size // 4, _MOST_MORE)))
        return self._samples[first : self._length]

    def finish(self) -> NDArray[np.float32]:
        """Return all samples, float32 [num_samples]."""
        if len(self._samples) != self._length:
            self._resize(self._length)
        return self._samples

    def _resize(self, size: int) -> None:
        """Resize with realloc, which moves the pages of a large array instead of copying them."""
        self._samples.resize(size, refcheck=False)

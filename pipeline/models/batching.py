"""Batches by length, halved when memory runs out, for every model that takes several utterances at once."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from pipeline.models.memory import shortage_as_memory_error
from pipeline.stats import BatchFigures

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Batcher:
    """Batch sizes of one loaded model. A size that fits in memory is kept for the lifetime of the model.

    Args:
        max_batch: utterances in one batch.
        max_padded: seconds (or tokens: the unit of the lengths) after padding in one batch of more than one utterance.
        device: cpu or cuda.
        equal: True when only utterances of one length may share a batch.
    """

    def __init__(self, *, max_batch: int, max_padded: float, device: str, equal: bool = False) -> None:
        self.max_batch = max_batch
        self._equal = equal
        self._max_padded = max_padded
        self._on_gpu = device.startswith("cuda")
        self._counted = BatchFigures()

    def run(
        self, lengths_s: Sequence[float], forward: Callable[[list[int]], T], real: Sequence[float] | None = None
    ) -> Iterator[tuple[list[int], T]]:
        """Run a model once on every utterance. A batch that runs out of memory is halved, and so are all that follow.

        Args:
            lengths_s: length of each utterance after the model's own padding.
            forward: the model, on a list of indices.
            real: actual length of each utterance, for the figures; by default `lengths_s`.
        Yields: indices, and the model's output for them.
        Raises: MemoryError when one utterance alone does not fit; any other error of `forward`.
        """
        planned = self._plan(range(len(lengths_s)), lengths_s)
        while planned:
            batch = planned.popleft()
            started = time.perf_counter()
            output = _attempt(forward, batch)
            if output is None:
                self._counted.halved += 1
                self._shrink(len(batch), lengths_s[batch[0]])
                planned = self._plan([*batch, *chain.from_iterable(planned)], lengths_s)
            else:
                yield batch, output  # the consumer waits for the device
                self._count(batch, lengths_s, real or lengths_s)
            self._counted.model_s += time.perf_counter() - started

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call."""
        counted, self._counted = self._counted, BatchFigures()
        return counted

    def _count(self, batch: list[int], lengths_s: Sequence[float], real: Sequence[float]) -> None:
        longest = lengths_s[batch[0]]
        self._counted.batches += 1
        self._counted.batched += len(batch)
        self._counted.room += max(1.0, min(self.max_batch, self._max_padded // longest if longest else math.inf))
        self._counted.real += sum(real[i] for i in batch)
        self._counted.padded += longest * len(batch)

    def _plan(self, waiting: Sequence[int], lengths_s: Sequence[float]) -> deque[list[int]]:
        lengths = [lengths_s[i] for i in waiting]
        made = batches(lengths, max_batch=self.max_batch, max_padded=self._max_padded, equal=self._equal)
        return deque([waiting[i] for i in batch] for batch in made)

    def _shrink(self, size: int, longest_s: float) -> None:
        """Halve the batch size that ran out of memory, permanently."""
        self._max_padded = longest_s * (size // 2)
        _log.warning(
            "out of memory for a batch of %d of length %.1f; from now on batches hold %.0f",
            size,
            longest_s,
            self._max_padded,
        )
        if self._on_gpu:
            import torch

            torch.cuda.empty_cache()


def _attempt(forward: Callable[[list[int]], T], batch: list[int]) -> T | None:
    """Run one pass; return None when memory is too small for the batch. Raises: MemoryError for a batch of one."""
    try:
        with shortage_as_memory_error():
            return forward(batch)
    except MemoryError:
        if len(batch) == 1:
            raise
        return None  # drops the traceback, which keeps the memory in use


def batches(lengths_s: Sequence[float], *, max_batch: int, max_padded: float, equal: bool = False) -> list[list[int]]:
    """Group indices by length, longest first, so that padding is small and a lack of memory appears first or never.

    A batch has at most `max_batch` members and `max_padded` after padding, and with `equal` members of one length; one
    alone always fits.
    """
    made: list[list[int]] = []
    for index in sorted(range(len(lengths_s)), key=lambda i: -lengths_s[i]):
        last = made[-1] if made else []
        fits = last and len(last) < max_batch and (len(last) + 1) * lengths_s[last[0]] <= max_padded
        if fits and (not equal or lengths_s[index] == lengths_s[last[0]]):
            last.append(index)
        else:
            made.append([index])
    return made

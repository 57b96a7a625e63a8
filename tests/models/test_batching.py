"""Batches, and what they count of themselves."""

from __future__ import annotations

import math

import pytest

from pipeline.models.batching import Batcher


def run(batcher: Batcher, lengths: list[float], forward=lambda batch: batch, real=None) -> list[int]:
    return sorted(index for batch, _ in batcher.run(lengths, forward, real) for index in batch)


def test_fill_and_padding_are_counted():
    """Fails if room is not what would have fitted by number and by length, or padding is not counted to the longest."""
    batcher = Batcher(max_batch=4, max_padded=20.0, device="cpu")
    assert run(batcher, [10.0, 9.0, 2.0, 1.0, 1.0]) == [0, 1, 2, 3, 4]  # [10, 9], [2, 1, 1]
    counted = batcher.take_figures()
    assert (counted.batches, counted.batched, counted.room) == (2, 5, 2 + 4)
    assert (counted.real, counted.padded, counted.halved) == (23.0, 26.0, 0) and counted.model_s > 0
    assert batcher.take_figures().batches == 0, "what was taken is counted a second time"


def test_length_of_windows_is_not_length_of_speech():
    """Fails if Whisper's padding to 30 s does not show."""
    batcher = Batcher(max_batch=2, max_padded=math.inf, device="cpu")
    run(batcher, [30.0] * 3, real=[3.0, 4.0, 5.0])
    counted = batcher.take_figures()
    assert (counted.real, counted.padded, counted.room) == (12.0, 90.0, 4)


def test_a_batch_without_memory_is_counted_once_and_its_halves_as_batches():
    """Fails if nobody can see that memory runs short, or utterances of a failed batch count twice."""

    def forward(batch: list[int]) -> list[int]:
        if len(batch) > 2:
            raise MemoryError
        return batch

    batcher = Batcher(max_batch=4, max_padded=100.0, device="cpu")
    assert run(batcher, [1.0] * 4, forward) == [0, 1, 2, 3]
    counted = batcher.take_figures()
    assert (counted.halved, counted.batches, counted.batched, counted.padded) == (1, 2, 4, 4.0)


def test_one_alone_that_finds_no_memory_is_an_error():
    """Fails if it is halved into nothing."""

    def forward(_: list[int]) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        run(Batcher(max_batch=4, max_padded=1.0, device="cpu"), [1.0], forward)

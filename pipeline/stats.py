"""What the stages count, shard by shard: the same names in receipts, in `report.json`, in log lines and as metrics.

waited_s       seconds since the stage before sent the shard on
model_s        seconds in which models had a batch, results fetched from the device included
batches        batches put through a model: of audio, or of texts in mode text
batched        utterances in them
room           utterances that would have fitted into them
real, padded   length of those utterances, before and after padding: seconds of audio, in mode text tokens
halved         batches that found no memory and were halved
store_retries  calls to a store that were tried again
restarts       1 where the process that had the shard before had died
gpu_bytes      memory in use on the card after the shard, by whatever process
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PEAKS = ("gpu_bytes",)
"""Of these the largest counts; all others add up."""

Figures = Mapping[str, Mapping[str, float]]
"""Stage to name to number."""


@dataclass(slots=True)
class BatchFigures:
    """What one model counted since it was last asked."""

    model_s: float = 0.0
    batches: int = 0
    batched: int = 0
    room: float = 0.0
    real: float = 0.0
    padded: float = 0.0
    halved: int = 0


def total(many: Iterable[Figures]) -> dict[str, dict[str, float]]:
    """Over many shards: sums, and the largest of `PEAKS`."""
    totals: dict[str, dict[str, float]] = {}
    for figures in many:
        for stage, numbers in figures.items():
            there = totals.setdefault(stage, {})
            for name, number in numbers.items():
                there[name] = max(there.get(name, 0.0), number) if name in PEAKS else there.get(name, 0.0) + number
    return {stage: {name: round(number, 6) for name, number in numbers.items()} for stage, numbers in totals.items()}

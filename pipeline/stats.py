"""Counters of the stages, per shard: the same names in receipts, `report.json`, log lines and metrics.

waited_s       seconds since the previous stage passed the shard on
model_s        seconds in which models ran a batch, including the transfer of results from the device
batches        batches run by a model: of audio, or of texts in mode text
batched        utterances in these batches
room           utterances that would have fitted into these batches
real, padded   length of those utterances, before and after padding: seconds of audio, in mode text tokens
halved         batches that ran out of memory and were halved
store_retries  retried calls to a store
mixed          rows without a channel of which two channels that differ were mixed down
restarts       1 when the previous process of the shard had died
gpu_bytes      GPU memory in use after the shard, by all processes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIXED = "mixed"
PEAKS = ("gpu_bytes",)
"""Counters whose total is their maximum; others are added up."""

Figures = Mapping[str, Mapping[str, float]]
"""Stage -> counter -> value."""


@dataclass(slots=True)
class BatchFigures:
    """Counters of one model since they were last read."""

    model_s: float = 0.0
    batches: int = 0
    batched: int = 0
    room: float = 0.0
    real: float = 0.0
    padded: float = 0.0
    halved: int = 0


class FiguresTotal:
    """Running total of the counters of many shards: sums, and maxima for `PEAKS`."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, float]] = {}

    def add(self, figures: Figures) -> None:
        """Add the counters of one shard."""
        for stage, numbers in figures.items():
            totals = self._totals.setdefault(stage, {})
            for name, number in numbers.items():
                before = totals.get(name, 0.0)
                totals[name] = max(before, number) if name in PEAKS else before + number

    def rounded(self) -> dict[str, dict[str, float]]:
        """Return the totals, to six decimals."""
        return {
            stage: {name: round(number, 6) for name, number in numbers.items()}
            for stage, numbers in self._totals.items()
        }

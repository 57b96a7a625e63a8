"""Counts and sums over the receipts of a plan, taken one by one, so that memory does not grow with the number of parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.dataset.parts import Receipt
from pipeline.dataset.plan import Plan, read_shards
from pipeline.errors import JobError, Reject
from pipeline.manifest.rejects import rejects_table
from pipeline.stats import MIXED, FiguresTotal
from pipeline.storage.store import Store

Rejects = tuple[tuple[int, Reject], ...]
"""The rejected rows of a shard: position and reject."""

_SHARDS_AT_ONCE = 64
"""Number of shards whose rejects become one table. One table for each shard takes ten times as long."""


@dataclass
class Tally:
    """Counts and sums over the receipts of a plan.

    Attributes:
        foreign: parts of another configuration.
        misplaced: parts under another shard's name.
        rejects: the rejects of each shard that has any, by its number.
    """

    plan: Plan
    parts: int = 0
    rows: int = 0
    utterances: int = 0
    audio_s: float = 0.0
    foreign: int = 0
    misplaced: int = 0
    rejects: dict[int, Rejects] = field(default_factory=dict)
    _stages: dict[str, float] = field(default_factory=dict)
    _figures: FiguresTotal = field(default_factory=FiguresTotal)

    @classmethod
    def of(cls, plan: Plan, shards: Iterable[int], receipts: Iterable[Receipt]) -> Tally:
        """Count the receipts of parts, given with the shard numbers in their names."""
        tally, config_hash = cls(plan), plan.config_hash
        for shard, receipt in zip(shards, receipts, strict=True):
            tally._add(shard, receipt, config_hash)
        return tally

    def _add(self, shard: int, receipt: Receipt, config_hash: str) -> None:
        self.parts += 1
        self.rows += receipt.rows
        self.utterances += receipt.utterances
        self.audio_s += receipt.audio_s
        self.foreign += receipt.config_hash != config_hash
        self.misplaced += (receipt.plan, receipt.shard) != (self.plan.plan, shard)
        for stage, seconds in receipt.stage_s.items():
            self._stages[stage] = round(self._stages.get(stage, 0.0) + seconds, 3)
        self._figures.add(receipt.figures)
        if receipt.rejects:
            self.rejects[shard] = receipt.rejects

    def require_whole(self) -> None:
        """Check that the receipts add up to the plan. Raises: JobError."""
        plan = self.plan
        if self.parts != plan.num_shards or self.rows != plan.rows or self.foreign or self.misplaced:
            raise JobError(
                f"plan {plan.plan} does not add up: {self.parts} of {plan.num_shards} parts, {self.rows} of {plan.rows} rows, "
                f"{self.foreign} parts of another configuration, {self.misplaced} parts under another shard's name. Nothing is "
                "published; python -m jobs.verify lists the differences"
            )

    def document(self, reasons: Sequence[str]) -> dict[str, Any]:
        """Return the counts and sums for the report.

        Args:
            reasons: the reason of each reject, those of planning included.
        """
        plan, figures = self.plan, self._figures.rounded()
        mixed = figures.get("prepare", {}).get(MIXED, 0.0)
        return {
            "rows": plan.rows + plan.rejects,
            "recordings_annotated": plan.rows - sum(map(len, self.rejects.values())),
            "utterances": self.utterances,
            "rejected": len(reasons),
            "rejects_by_reason": dict(sorted(Counter(reasons).items())),
            **({"retried": dict(plan.retries)} if plan.retries else {}),
            **({"erased": sum(plan.erased.values())} if plan.erased else {}),
            **({"policy": plan.policy.shown(), "excluded": dict(plan.excluded)} if plan.policy else {}),
            "audio_hours": round(self.audio_s / 3600, 6),
            "stage_seconds": self._stages,
            "figures": figures,
            **({"rows_mixed_down": round(mixed)} if mixed else {}),
            "parts": self.parts,
        }


def rejected_rows(store: Store, plan: Plan, rejects: dict[int, Rejects]) -> Iterator[pa.Table]:
    """Yield the rejected rows of shards as rows of `rejects/`, in shard order. Raises: IndexError."""
    shards = (shard for shard in plan.shards() if shard.number in rejects)
    refused = zip((rejects[number] for number in sorted(rejects)), read_shards(store, shards), strict=True)
    while some := list(islice(refused, _SHARDS_AT_ONCE)):
        positions, causes, start = list[int](), list[Reject](), 0
        for of_shard, rows in some:
            for position, reject in of_shard:
                if position >= rows.num_rows:  # in the joined table this would be a row of the next shard
                    raise IndexError(
                        f"row {position} of a shard of {rows.num_rows} rows of plan {plan.plan} is rejected"
                    )
                positions.append(start + position)
                causes.append(reject)
            start += rows.num_rows
        rows = pa.concat_tables([rows for _, rows in some])
        yield rejects_table(rows.take(positions), causes, run_id=plan.plan)

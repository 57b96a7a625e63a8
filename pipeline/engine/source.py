"""The source of shards: a lazy dataset of one block per shard, so that all shards of a run are one execution.

Ray Data keeps the blocks that it is given for as long as an execution lasts, so each of them holds many shards. A task spreads
one of them over blocks of one shard, as fast as the next stage takes these; the next task starts when it has ended.
It also keeps statistics of every block of every stage, 4 kB a shard, which nobody reads; `ForgetBlockStats` drops them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import pyarrow as pa
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from pipeline.dataset.plan import Shard

SHARDS_PER_BLOCK = 1024
_STATS_KEPT = 256
"""Blocks of each stage whose statistics Ray Data may hold."""


def has_stage(num_shards: int) -> bool:
    """Return whether so many shards need tasks that spread them; those of one block do not."""
    return num_shards > SHARDS_PER_BLOCK


def shard_blocks(shards: Iterable[Shard]) -> ray.data.Dataset:
    """Return the lazy dataset of the shards, in their order. No task runs before the dataset is read."""
    lines = [json.dumps(asdict(shard)) for shard in shards]
    if not has_stage(len(lines)):
        return ray.data.from_items([{"shard": line} for line in lines], override_num_blocks=len(lines))
    held = [{"shards": lines[at : at + SHARDS_PER_BLOCK]} for at in range(0, len(lines), SHARDS_PER_BLOCK)]
    source: ray.data.Dataset = ray.data.from_items(held, override_num_blocks=len(held))
    return source.map_batches(spread, batch_size=None, batch_format="pyarrow", num_cpus=0, concurrency=1)


def spread(block: pa.Table) -> Iterator[pa.Table]:
    """Yield a block for each shard of a block."""
    for lines in block["shards"].to_pylist():
        for line in lines:
            yield pa.table({"shard": [line]})


class ForgetBlockStats(ExecutionCallback):
    """Callback of Ray Data that keeps its statistics of finished blocks short."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Drop the statistics of all stages that have many."""
        # private API: no public option limits them; ray is pinned to one version
        for stage in executor._topology or ():
            stats: list[object] = getattr(stage, "_output_blocks_stats", [])
            if len(stats) > _STATS_KEPT:
                stats.clear()

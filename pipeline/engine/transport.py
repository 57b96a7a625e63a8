"""The shard envelope: a shard between stages is one block of one row, which Ray cannot split or merge. Imports no Ray.

The row holds the shard, the measurements of the earlier stages, and the work table as Arrow IPC bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pipeline.dataset.plan import Shard
from pipeline.errors import JobError
from pipeline.storage import retry


@dataclass
class ShardEnvelope:
    """The envelope of a shard between stages: the shard and its measurements so far.

    Attributes:
        stage_s: seconds of work, by stage.
        figures: other measurements, by stage and `pipeline.stats` name.
        sent_at: wall-clock time at which the previous stage sent the shard; None before the first stage.
    """

    shard: Shard
    stage_s: dict[str, float] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    sent_at: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, float]]:
        """Measure one stage; figures that the caller puts into the yielded mapping are recorded with it.

        The wait before the stage is measured with the clocks of two nodes, so it is as accurate as they agree.
        """
        waited_s = 0.0 if self.sent_at is None else max(0.0, time.time() - self.sent_at)
        started, tried_again = time.perf_counter(), retry.tried_again()
        counted: dict[str, float] = {}
        yield counted
        self.stage_s[name] = time.perf_counter() - started
        self.figures[name] = {"waited_s": waited_s, "store_retries": retry.tried_again() - tried_again, **counted}

    def pack(self, table: pa.Table) -> pa.Table:
        """Return the block for the next stage, with the table as Arrow IPC bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        ends = pa.array([0, content.size], pa.int64()).buffers()[1]
        packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, content])  # makes no copy
        measured = json.dumps({"stage_s": self.stage_s, "figures": self.figures, "sent_at": time.time()})
        return pa.table({"shard": [json.dumps(asdict(self.shard))], "measured": [measured], "table": packed})


def unpack(block: pa.Table) -> tuple[ShardEnvelope, pa.Table]:
    """Return the envelope and the table that `ShardEnvelope.pack` packed. Raises: JobError when the block is not one shard."""
    envelope = envelope_of(block)
    return envelope, pa.ipc.open_stream(block["table"][0].as_buffer()).read_all()


def envelope_of(block: pa.Table) -> ShardEnvelope:
    """Return the envelope of a block, without its table. Raises: JobError when the block is not one shard."""
    if block.num_rows != 1:
        raise JobError(f"a block holds {block.num_rows} shards instead of one")
    measured = json.loads(block["measured"][0].as_py()) if "measured" in block.column_names else {}
    return ShardEnvelope(Shard(**json.loads(block["shard"][0].as_py())), **measured)

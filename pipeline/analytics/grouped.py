"""Record batches in groups of about a size, so that a run is written with the memory of one group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa


def grouped(batches: Iterable[pa.RecordBatch], size_bytes: int) -> Iterator[pa.Table]:
    """Yield tables of at least `size_bytes` in memory, except the last; none without rows."""
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            waiting_bytes += batch.nbytes
        if waiting_bytes >= size_bytes:
            yield pa.Table.from_batches(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)

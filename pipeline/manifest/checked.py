"""Chunks of a manifest, checked and in the form in which `Staging` stores them; the work of reading a manifest ends here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Reject
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.manifest.read import ManifestChunk
from pipeline.manifest.rejects import lines_table, refused_table
from pipeline.storage.temporary import naming_full_disk

Check = Callable[[pa.Table], tuple[pa.Table, dict[int, Reject]]]
"""Function that checks one chunk of rows and returns them, possibly completed, with the rejects by position."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows as a Parquet file, with the keys of their ids.

    Attributes:
        content: the file's bytes.
    """

    num_rows: int
    keys: Keys
    content: bytes

    @classmethod
    def of(cls, rows: pa.Table) -> PackedRows:
        """Pack rows of a manifest."""
        return cls(rows.num_rows, id_keys(rows["recording_id"].to_pylist()), packed(rows))

    def columns(self, *names: str) -> pa.Table:
        """Return some columns of the rows."""
        return pq.read_table(pa.BufferReader(self.content), columns=list(names))


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """The content of a chunk after the checks.

    Attributes:
        schema: schema of all rows, the refused ones included.
        refused: rejects of the rows that were refused, and `refused_keys` the keys of their ids.
        unread: rejects of the lines that are not rows.
    """

    schema: pa.Schema
    rows: PackedRows
    refused: pa.Table
    refused_keys: Keys
    unread: pa.Table


def checked(chunk: ManifestChunk, check: Check) -> CheckedChunk:
    """Check a chunk."""
    rows, refused = check(chunk.rows)
    kept = np.setdiff1d(np.arange(rows.num_rows), np.fromiter(refused, np.int64, len(refused)))
    return CheckedChunk(
        schema=rows.schema,
        rows=PackedRows.of(rows.take(pa.array(kept)) if refused else rows),
        refused=refused_table(rows, refused),
        refused_keys=id_keys(rows["recording_id"][row].as_py() for row in refused),
        unread=lines_table(chunk.rejects, chunk.manifest),
    )


def packed(table: pa.Table) -> bytes:
    """Return a table as a Parquet file for the time of one job."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def stored(content: bytes, path: Path) -> Path:
    """Write a file. Returns: its path."""
    with naming_full_disk(path):
        path.write_bytes(content)
    return path

"""Packing of a plan's rows into shards, and of shards into files, one row group each."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import shard_file, texts_file
from pipeline.manifest.python_values import groups
from pipeline.storage.store import Store

SHARDS_PER_FILE = 1024
_OPEN_ROWS = 200_000
"""Rows the planner holds in open shards over all partitions; above this, the fullest shards are closed early."""
ASSUMED_DURATION_S = 15.0
"""Assumed duration of a row without one, for filling shards."""


@dataclass(frozen=True, slots=True)
class ShardSize:
    """Maximum size of a shard; a shard is full when the first bound is reached."""

    rows: int
    audio_s: float


class OpenFile:
    """A Parquet file in memory, with a row group for each table."""

    def __init__(self, schema: pa.Schema) -> None:
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._buffer, schema, compression="zstd", write_statistics=False, write_page_checksum=True
        )

    def add(self, rows: pa.Table) -> None:
        """Write a row group."""
        self._writer.write_table(rows.combine_chunks(), row_group_size=max(1, rows.num_rows))

    def content(self) -> bytes:
        """Return the finished file."""
        self._writer.close()
        return self._buffer.getvalue()


def without_texts(rows: pa.Table) -> pa.Table:
    """Return plan rows with null in place of their texts."""
    place = rows.schema.get_field_index("text")
    return rows.set_column(place, rows.schema.field(place), pa.nulls(rows.num_rows, pa.string()))


@dataclass
class ShardFiles:
    """Writer of shards as row groups of numbered Parquet files in the store.

    Attributes:
        texts_apart: whether texts are written to files of their own, with the same row groups.
    """

    store: Store
    plan: str
    token: str
    schema: pa.Schema
    texts_apart: bool = False
    files: list[tuple[str, int]] = field(default_factory=list)
    _rows: OpenFile | None = None
    _texts: OpenFile | None = None
    _shards: int = 0

    def add(self, rows: pa.Table) -> tuple[str, int]:
        """Write one shard.

        Returns: the key of its file, which exists once the file is full or closed, and the number of its row group.
        """
        key, row_group = self._key(), self._shards
        if self.texts_apart:
            self._texts = self._texts or OpenFile(pa.schema([self.schema.field("text")]))
            self._texts.add(rows.select(["text"]))
            rows = without_texts(rows)
        self._rows = self._rows or OpenFile(self.schema)
        self._rows.add(rows)
        self._shards += 1
        if self._shards == SHARDS_PER_FILE:
            self.close()
        return key, row_group

    def _key(self) -> str:
        return shard_file(self.plan, self.token, len(self.files))

    def close(self) -> None:
        """Store the current file."""
        if self._rows is None:
            return
        key = self._key()
        if self._texts is not None:
            self.store.put_if_absent(texts_file(key), self._texts.content())
        self.store.put_if_absent(key, self._rows.content())
        self.files.append((key, self._shards))
        self._rows, self._texts, self._shards = None, None, 0


@dataclass
class Packer:
    """Packer of rows into shards; the rows of a shard share their partition values and language."""

    files: ShardFiles
    group_by: tuple[str, ...]
    size: ShardSize
    _open: dict[tuple[object, ...], list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    _fill: dict[tuple[object, ...], tuple[int, float]] = field(default_factory=lambda: defaultdict(lambda: (0, 0.0)))

    def add(self, rows: pa.Table) -> None:
        """Add rows to the open shards; full shards are written."""
        for key, group in groups(rows, self.group_by):
            self._add_group(key, group)
        excess = sum(count for count, _ in self._fill.values()) - _OPEN_ROWS
        if excess > 0:  # sorting is stable: of shards of equal size the one opened first is closed first
            for key in sorted(self._fill, key=lambda key: self._fill[key][0], reverse=True):
                excess -= self._fill[key][0]
                self._close(key)
                if excess <= 0:
                    break

    def _add_group(self, key: tuple[object, ...], rows: pa.Table) -> None:
        # a row longer than a shard fills one shard, whatever its stated duration
        durations = np.clip(rows["duration_s"].fill_null(ASSUMED_DURATION_S).to_numpy(), 0.0, self.size.audio_s)
        start = 0
        while start < rows.num_rows:
            count, audio_s = self._fill[key]
            ends = audio_s + np.cumsum(durations[start:])
            fit = int(np.searchsorted(ends, self.size.audio_s, side="right"))
            take = max(min(fit, self.size.rows - count), 0 if count else 1)
            if take:
                self._open[key].append(rows.slice(start, take))
                self._fill[key] = (count + take, float(ends[take - 1]))
            start += take
            if start < rows.num_rows:
                self._close(key)

    def _close(self, key: tuple[object, ...]) -> None:
        self.files.add(pa.concat_tables(self._open.pop(key)))
        del self._fill[key]

    def finish(self) -> None:
        """Write the shards that are still open."""
        for key in list(self._open):
            self._close(key)
        self.files.close()

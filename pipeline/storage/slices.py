"""Neighbouring items of a container, decoded together and kept for the next calls of this process.

A row group of a Parquet file, or a stretch of a compressed tar, is decoded once for all of its items that a shard reads in
order. A slice holds up to `_SLICE_BYTES`, in memory up to `_MEMORY_BYTES` and beyond that in an unnamed file below TMPDIR;
a process keeps `_SLICES` of them.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Reason, Reject, RejectedRow, Stage
from pipeline.storage.items import Item, RowItem, TarItem
from pipeline.storage.temporary import naming_full_disk

Open = Callable[[], AbstractContextManager[BinaryIO]]
"""Function that opens a container, seekable, at its start."""

HEADER_BYTES = 512
"""Size of a tar header, which precedes a member's content."""
_SLICE_BYTES = 256 << 20
_MEMORY_BYTES = 64 << 20
_SLICES = 2
_ROWS_BEFORE, _BYTES_BEFORE = 16, 64 << 20
"""Rows, or bytes of a tar, before the first requested item that a slice includes, for calls that come out of order."""
_BATCH_BYTES, _BATCH_ROWS = 16 << 20, 64
_PIECE_BYTES = 1 << 20
_PAGE_BYTES = 1 << 20

_NULL = "has no audio: its bytes are null (paths are used only where the bytes of the whole row group are null)"

_slices: OrderedDict[tuple[object, ...], Slice] = OrderedDict()
_lock = threading.Lock()  # held while a slice is decoded: neighbours that other threads want are probably in it


@dataclass
class Slice:
    """Decoded neighbours in one file.

    Attributes:
        places: start and size in the file, or the reject, by row number; empty for a stretch of a tar.
        start: first byte of the stretch of a tar.
        size: size of the stretch.
        end: the reject of items after the last one, if the container is damaged there.
    """

    places: dict[int, tuple[int, int] | Reject] = field(default_factory=dict)
    start: int = 0
    size: int = 0
    end: Reject | None = None
    _file: BinaryIO = field(default_factory=lambda: cast(BinaryIO, _unnamed_file()))
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __del__(self) -> None:
        self._file.close()  # not when the slice is dropped from the cache, since another thread may be reading it

    def add(self, content: bytes | memoryview) -> None:
        """Append bytes. Raises: JobError naming TMPDIR when it is full."""
        with naming_full_disk(Path(tempfile.gettempdir()) / "audio"):
            self._file.write(content)
        self.size += len(content)

    def holds(self, item: Item) -> bool:
        """Return whether the slice answers a call for an item, if only with a reject."""
        if isinstance(item, RowItem):
            return item.row in self.places or (self.end is not None and item.row > max(self.places, default=-1))
        first = max(0, item.offset - HEADER_BYTES)
        return self.start <= first and (self.end is not None or item.offset + item.size <= self.start + self.size)

    def size_of(self, item: Item, display_uri: str) -> int:
        """Return the size of an item in bytes. Raises: RejectedRow."""
        if isinstance(item, TarItem):
            if item.offset + item.size > self.start + self.size and self.end is not None:
                raise _named(self.end, display_uri)
            return item.size
        place = self.places.get(item.row, self.end)
        if not isinstance(place, tuple):
            raise _named(place or _absent(), display_uri)
        return place[1]

    def read(self, item: Item, start: int, count: int) -> bytes:
        """Read bytes of an item, counted from its header if it has one."""
        if isinstance(item, RowItem):
            place = self.places[item.row]
            first = place[0] if isinstance(place, tuple) else 0
        else:
            first = item.offset - HEADER_BYTES - self.start
        with self._reading:
            self._file.seek(first + start)
            return self._file.read(count)


def _unnamed_file() -> tempfile.SpooledTemporaryFile[bytes]:
    return tempfile.SpooledTemporaryFile(_MEMORY_BYTES)


def _named(reject: Reject, display_uri: str) -> RejectedRow:
    return RejectedRow(reject.reason, f"{display_uri} {reject.detail}", reject.stage)


def _absent() -> Reject:
    return Reject(Reason.CHANGED, "is not there: its container has changed since it was indexed", Stage.FETCH)


def item_slice(open_container: Open, item: Item, display_uri: str) -> Slice:
    """Return a slice that holds an item, decoded now unless this process has it. Raises: RejectedRow; OSError."""
    key = (item.container, item.row_group, item.group) if isinstance(item, RowItem) else (item.container,)
    with _lock:
        kept = _slices.get(key)
        if kept is not None and kept.holds(item):
            _slices.move_to_end(key)
            return kept
        _slices.pop(key, None)
        with open_container() as file:
            made = _rows(file, item, display_uri) if isinstance(item, RowItem) else _stretch(file, item)
        _slices[key] = made
        while len(_slices) > _SLICES:
            _slices.popitem(last=False)
        return made


# ------------------------------------------------------------------------------------------------- compressed tars


def _stretch(file: BinaryIO, item: TarItem) -> Slice:
    """Decompress from the start of the tar, and keep the bytes around a member."""
    made = Slice(start=max(0, item.offset - HEADER_BYTES - _BYTES_BEFORE))
    until = max(item.offset + item.size, made.start + _SLICE_BYTES)
    at = 0
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while at < until and (piece := stream.read(_PIECE_BYTES)):
                at += len(piece)
                if at > made.start:
                    made.add(piece[max(0, len(piece) - (at - made.start)) :])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        made.end = Reject(Reason.DAMAGED, f"cannot be decompressed: {error}", Stage.FETCH)
    if at < until and made.end is None:
        made.end = Reject(Reason.TRUNCATED, f"is cut off: the tar ends after {at:,} bytes", Stage.FETCH)
    return made


# ---------------------------------------------------------------------------------------------------- row groups


def audio_leaf(schema: pa.Schema, column: str) -> str | None:
    """Return the path of the binary values of a column: itself, or its field `bytes`; None if it holds no audio."""
    number = schema.get_field_index(column)
    if number < 0:
        return None
    kind = schema.field(number).type
    if _is_binary(kind):
        return column
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
        return f"{column}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def chunk_of(metadata: pq.FileMetaData, row_group: int, leaf: str) -> pq.ColumnChunkMetaData:
    """Return the details of a leaf column in a row group. Raises: KeyError."""
    group = metadata.row_group(row_group)
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema == leaf:
            return chunk
    raise KeyError(leaf)


def group_mark(metadata: pq.FileMetaData, row_group: int, leaf: str) -> str:
    """Return 8 hex digits of a hash of a row group's layout: place, size and number of its values."""
    chunk = chunk_of(metadata, row_group, leaf)
    layout = (
        f"{chunk.data_page_offset} {chunk.total_compressed_size} {chunk.total_uncompressed_size} {chunk.num_values}"
    )
    return hashlib.blake2b(layout.encode(), digest_size=4).hexdigest()


def _rows(file: BinaryIO, item: RowItem, display_uri: str) -> Slice:
    """Decode a row group, or the rows around one if the group is large. Raises: RejectedRow; OSError of the store."""
    made = Slice()
    row = 0
    try:
        metadata = pq.read_metadata(file)
        leaf = audio_leaf(metadata.schema.to_arrow_schema(), item.column)
        if leaf is None or item.row_group >= metadata.num_row_groups:
            raise _named(_absent(), display_uri)
        if group_mark(metadata, item.row_group, leaf) != item.group:
            raise _named(_absent(), display_uri)
        chunk = chunk_of(metadata, item.row_group, leaf)
        is_whole = max(chunk.total_uncompressed_size, chunk.total_compressed_size) <= _SLICE_BYTES
        first = 0 if is_whole else max(0, item.row - _ROWS_BEFORE)
        # buffered, a column of a row group is fetched at once
        parquet = pq.ParquetFile(file, metadata=metadata, buffer_size=_PAGE_BYTES, pre_buffer=is_whole)
        for values in _batches(parquet, item, leaf, chunk):
            if row + len(values) > first:
                for number, value in enumerate(values, row):
                    if number >= first:
                        _keep(made, number, value)
            row += len(values)
            if made.size > _SLICE_BYTES:
                if row > item.row:
                    break
                made, first = Slice(), item.row - _ROWS_BEFORE  # the values are larger than the file states
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the store, not of the file: Arrow's own have no errno
        place = f"after row {row - 1:,} of its row group" if row else "from the start of its row group"
        why = " ".join(str(error).split())
        made.end = Reject(Reason.DAMAGED, f"is in Parquet that does not decode {place}: {why}", Stage.FETCH)
    return made


def _keep(made: Slice, number: int, value: pa.Scalar) -> None:
    if not value.is_valid:
        made.places[number] = Reject(Reason.NOT_FOUND, _NULL, Stage.FETCH)
        return
    content = memoryview(value.as_buffer())
    made.places[number] = (made.size, len(content))
    made.add(content)


def _batches(parquet: pq.ParquetFile, item: RowItem, leaf: str, chunk: pq.ColumnChunkMetaData) -> Iterator[pa.Array]:
    """Yield the binary values of a row group, few at a time.

    One at a time if they are dictionary-encoded: a small page may then stand for many large values.
    """
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, chunk.num_values) // max(1, chunk.total_uncompressed_size)))
    if chunk.has_dictionary_page:
        rows = 1
    for batch in parquet.iter_batches(batch_size=rows, row_groups=[item.row_group], columns=[leaf]):
        column = batch.column(0)
        values = column if leaf == item.column else _field(column)
        yield values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values


def _field(column: pa.StructArray) -> pa.Array:
    """Return the values of a struct's only field, null where the struct is null."""
    return column.flatten()[0]

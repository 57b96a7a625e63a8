"""Records of a Parquet manifest, in batches of bounded size; columns keep their types.

Errors that concern no single row refuse the whole file: a known column of a wrong type, pages that do not decode. A row
whose strings are not UTF-8 is rejected alone (Parquet readers do not check this).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.manifest.columns import plain_type, to_python
from pipeline.manifest.embedded import addressed_batches, audio_column
from pipeline.manifest.fields import KNOWN
from pipeline.manifest.python_values import plain_values
from pipeline.manifest.records import CHUNK_BYTES, RAW_CHARACTERS, BadName, Names, RejectedLine, malformed
from pipeline.manifest.source import READ_BYTES
from pipeline.manifest.store import store_errors
from pipeline.storage.uri import own_uri

_TEXT = ("a string", (pa.types.is_string,))
_NUMBER = ("a number", (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
_EXPECTED = {
    **{"audio": _TEXT, "text": _TEXT, "language": _TEXT},
    **{"offset": _NUMBER, "duration": _NUMBER, "channel": _NUMBER},
    "id": ("a string or a whole number", (pa.types.is_string, pa.types.is_integer)),
}


class ParquetRecords:
    """Some rows of a Parquet manifest."""

    from_csv = False

    def __init__(self, batch: pa.RecordBatch, first: int, rejects: list[RejectedLine], lines: list[int]) -> None:
        self.lines = lines
        self.rejects = rejects
        self.names: dict[str, None] = dict.fromkeys(batch.schema.names)
        self._batch = batch if len(lines) == batch.num_rows else batch.take(pa.array([n - first for n in lines]))

    def raw(self, position: int) -> str:
        """Return the row as JSON."""
        return _raw(self._batch, position)

    def values(self, name: str) -> list[object]:
        """Return one known column; null and NaN, which pandas writes for missing values, become None."""
        column = self._batch.column(name)
        if KNOWN[name.lower()] in ("offset", "duration", "channel"):
            values: list[object] = column.cast(pa.float64()).to_pylist()
            return [None if value != value else value for value in values]  # noqa: PLR0124 - only NaN differs from itself
        strings: list[object] = column.cast(pa.string()).to_pylist()
        return strings

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """Return one pass-through column of the kept rows, unchanged."""
        column = self._batch.column(name)
        return column if kept is None else column.take(pa.array(kept, pa.int64()))


def read_parquet(
    raw: BinaryIO,
    chunk_rows: int,
    display_uri: str,
    *,
    uri: str,
    reopen: Callable[[], AbstractContextManager[BinaryIO]],
) -> Iterator[ParquetRecords]:
    """Yield records of a Parquet file, at most `chunk_rows` rows and about `CHUNK_BYTES` at a time.

    Args:
        uri: URI of the file, for the addresses of audio in it.
        reopen: opens the file again, to read columns without the audio between them.
    Raises: ConfigError for a file that does not decode, and for known columns of a wrong type.
    """
    first = 1
    with store_errors(display_uri):
        try:
            # buffered, since otherwise a whole column of a row group is read at once
            file = pq.ParquetFile(raw, buffer_size=READ_BYTES, pre_buffer=False)  # closed by the opener of `raw`
            column = audio_column(file.schema_arrow)
            if column is not None:
                if uri.lower().startswith(("http://", "https://")):
                    raise ConfigError(
                        f"manifest {display_uri}: its column {column!r} holds audio, which is not read over http; copy the file"
                    )
                with reopen() as sparse:
                    for batch in addressed_batches(sparse, column, container=own_uri(uri), chunk_rows=chunk_rows):
                        yield _records(batch, _schema(batch.schema, display_uri), first, display_uri)
                        first += batch.num_rows
                return
            wanted = _schema(file.schema_arrow, display_uri)
            row_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            per_row = row_bytes // max(1, file.metadata.num_rows) + 1
            empty = pa.RecordBatch.from_pylist([], schema=wanted)
            yield _records(empty, wanted, first, display_uri)  # shows the columns
            for batch in file.iter_batches(batch_size=max(1, min(chunk_rows, CHUNK_BYTES // per_row))):
                yield _records(batch, wanted, first, display_uri)
                first += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the store, not of the file: Arrow's own have no errno
            raise ConfigError(
                f"manifest {display_uri}: Parquet that does not decode after row {first - 1:,}: {error}"
            ) from None


def _schema(schema: pa.Schema, display_uri: str) -> pa.Schema:
    """Return the schema with `plain_type` applied to every type. Raises: ConfigError for invalid column names."""
    try:
        Names().add(schema.names)
    except BadName as error:
        raise ConfigError(f"manifest {display_uri}: {error}") from None
    return pa.schema([pa.field(column.name, plain_type(column.type)) for column in schema])


def _known(column: pa.Array, name: str, display_uri: str) -> pa.Array:
    """Return a column, or nulls for a known one without values, which pandas writes with any type, mostly numbers.

    Raises: ConfigError for a known column with values of a wrong type.
    """
    expected, tests = _EXPECTED.get(KNOWN.get(name.lower(), ""), ("", ()))
    if not expected or any(test(column.type) for test in tests):
        return column
    absent = column.null_count
    if pa.types.is_floating(column.type):
        absent += pc.sum(pc.is_nan(column)).as_py() or 0
    if absent == len(column):
        return pa.nulls(len(column), pa.string() if pa.types.is_string in tests else pa.float64())
    raise ConfigError(f"manifest {display_uri}: column {name!r} is {column.type}; {expected} is expected")


def _records(batch: pa.RecordBatch, wanted: pa.Schema, first: int, display_uri: str) -> ParquetRecords:
    columns = [
        _known(column if column.type == field.type else _plain(column).cast(field.type), field.name, display_uri)
        for column, field in zip(batch.columns, wanted, strict=True)
    ]
    wanted = pa.schema([field.with_type(column.type) for column, field in zip(columns, wanted, strict=True)])
    rows = range(batch.num_rows)
    wrong: dict[int, str] = {}
    for column, field in zip(columns, wanted, strict=True):
        if not _valid(column):
            wrong |= {i: field.name for i in rows if i not in wrong and not _valid(column.take(pa.array([i])))}
    rejects = [RejectedLine(first + i, malformed(f"column {wrong[i]!r} is not UTF-8"), None) for i in sorted(wrong)]
    lines = [first + i for i in rows if i not in wrong]
    return ParquetRecords(pa.RecordBatch.from_arrays(columns, schema=wanted), first, rejects, lines)


def _plain(column: pa.Array) -> pa.Array:
    """Convert a list view column to a list column; Arrow's own cast loses the last offset (pyarrow 26)."""
    if not (pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type)):
        return column
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, column.flatten(), mask=column.is_null())


def _valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _readable(value: pa.Array) -> object:
    try:
        return to_python(value)[0]
    except pa.ArrowInvalid:  # a time in an unknown time zone
        return plain_values(value)[0]


def _raw(batch: pa.RecordBatch, position: int) -> str:
    row = {name: _readable(batch.column(name).slice(position, 1)) for name in batch.schema.names}
    return json.dumps(row, ensure_ascii=False, default=repr)[:RAW_CHARACTERS]

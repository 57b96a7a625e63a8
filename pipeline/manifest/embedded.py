"""Parquet manifests whose audio is in a column of their own, as Hugging Face's `datasets` writes it.

The column with the audio is not read: each row gets its address (`pipeline.storage.items`). A row group whose audio is all
null refers to files by their paths, and its rows do too.
Source: "Audio features" in the documentation of `datasets` 4: `struct<bytes: binary, path: string>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest.fields import ALIASES
from pipeline.manifest.records import CHUNK_BYTES
from pipeline.manifest.source import READ_BYTES
from pipeline.storage.items import RowItem
from pipeline.storage.slices import audio_leaf, chunk_of, group_mark

_PATH = "path"


def audio_column(schema: pa.Schema) -> str | None:
    """Return the column of a Parquet file that holds audio, or None.

    It is the first of the names of audio columns whose values are binary, or structs with a binary field `bytes`. Without a
    column of such a name, it is the only one that `datasets` declares as audio, or that is a struct of `bytes` and `path`.
    """
    names: list[str] = [name for alias in ALIASES["audio"] for name in schema.names if name.lower() == alias]
    if names:
        return next((name for name in names if audio_leaf(schema, name) is not None), None)
    declared = [name for name in _declared(schema) if name in schema.names and audio_leaf(schema, name) is not None]
    structs = [name for name in schema.names if audio_leaf(schema, name) == f"{name}.bytes"]
    others: list[str] = declared or [name for name in structs if schema.field(name).type.get_field_index(_PATH) >= 0]
    return others[0] if len(others) == 1 else None


def _declared(schema: pa.Schema) -> list[str]:
    """Return the columns that the metadata of `datasets` declares as audio."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name, feature in features.items() if feature.get("_type") == "Audio"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def addressed_batches(file: BinaryIO, column: str, *, container: str, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file with addresses, as strings in the column `audio`, in place of their audio.

    Other structs with a binary field `bytes`, such as further audio, are replaced by addresses as well. Batches have at
    most `chunk_rows` rows and about `CHUNK_BYTES`; they span row groups, which are small with audio.

    Args:
        container: absolute URI of the file.
    Raises: pa.ArrowException or OSError without an errno for a file that does not decode.
    """
    metadata = pq.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    leaves = {name: leaf for name in schema.names if (leaf := _replaced(schema, name, column)) is not None}
    paths = [f"{name}.{_PATH}" for name in leaves if _has_path(schema, name)]
    wanted = [name for name in schema.names if name not in leaves] + paths
    bytes_of = [_bytes_of(metadata.row_group(group), wanted) for group in range(metadata.num_row_groups)]
    batch_rows = max(1, min(chunk_rows, CHUNK_BYTES * metadata.num_rows // (sum(bytes_of) + 1)))
    # buffered, the wanted columns of a row group are fetched at once
    is_small = max(bytes_of, default=0) <= CHUNK_BYTES
    parquet = pq.ParquetFile(file, metadata=metadata, pre_buffer=is_small, buffer_size=0 if is_small else READ_BYTES)
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for group in range(metadata.num_row_groups):
        items = {
            name: RowItem(container, group, 0, name, group_mark(metadata, group, leaf)) for name, leaf in leaves.items()
        }
        absent = {name for name, leaf in leaves.items() if _all_null(chunk_of(metadata, group, leaf))}
        row = 0
        for batch in _read(parquet, group, wanted, batch_rows):
            columns = {name: _addresses(batch, item, row, is_absent=name in absent) for name, item in items.items()}
            waiting.append(_with_addresses(batch, schema, column, columns))
            row, rows, size = row + batch.num_rows, rows + batch.num_rows, size + waiting[-1].nbytes
            if rows >= chunk_rows or size >= CHUNK_BYTES:
                yield from _joined(waiting, chunk_rows)
                waiting, rows, size = [], 0, 0
    yield from _joined(waiting, chunk_rows)


def _replaced(schema: pa.Schema, name: str, column: str) -> str | None:
    """Return the binary leaf of a column that is replaced by addresses, or None for other columns."""
    leaf = audio_leaf(schema, name)
    return leaf if name == column or leaf != name else None


def _has_path(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index(_PATH) >= 0)


def _bytes_of(group: pq.RowGroupMetaData, wanted: list[str]) -> int:
    """Return the uncompressed size of some columns of a row group."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    names = {*wanted}
    return sum(
        c.total_uncompressed_size for c in chunks if {c.path_in_schema, c.path_in_schema.partition(".")[0]} & names
    )


def _read(parquet: pq.ParquetFile, group: int, wanted: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the wanted columns of a row group; without any, one batch of rows without columns."""
    if wanted:
        yield from parquet.iter_batches(batch_rows, row_groups=[group], columns=wanted)
        return
    rows = parquet.metadata.row_group(group).num_rows
    yield pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))


def _all_null(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether the statistics of a column say that it has no value in a row group."""
    statistics = chunk.statistics
    return bool(statistics and statistics.has_null_count and statistics.null_count == chunk.num_values)


def _addresses(batch: pa.RecordBatch, first: RowItem, row: int, *, is_absent: bool) -> pa.Array:
    """Return the addresses of a column for a batch that starts at a row; paths of files where it holds no audio."""
    if not is_absent:
        return pa.array([str(replace(first, row=row + n)) for n in range(batch.num_rows)], pa.string())
    if first.column not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.string())
    return batch.column(first.column).flatten()[0].cast(pa.string())


def _with_addresses(
    batch: pa.RecordBatch, schema: pa.Schema, column: str, addresses: Mapping[str, pa.Array]
) -> pa.RecordBatch:
    """Return a batch with the addresses in the place of binary values, that of the audio under a name that is known."""
    names = {column: column if column.lower() in ALIASES["audio"] else "audio"}
    arrays = [addresses[name] if name in addresses else batch.column(name) for name in schema.names]
    fields = [pa.field(names.get(f.name, f.name), pa.string()) if f.name in addresses else f for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _joined(batches: list[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    if batches:
        whole = pa.concat_batches(batches)
        for start in range(0, whole.num_rows, chunk_rows):
            yield whole.slice(start, chunk_rows)

"""Vector index of a Lance table: creation, update and search. Its results are approximate.

The index uses inverted lists with product quantisation (IVF_PQ): one byte for every 8 numbers of an embedding. The best
candidates are compared again with their full embeddings, so the reported cosine is exact, and a row is missed mainly
because its list was not searched. Rows added after the last update of the index are compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.analytics.nearest import SHOWN, SIMILARITY, condition
from pipeline.analytics.publish import storage_options
from pipeline.analytics.search import Query
from pipeline.dataset.reader import optional
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.schema import EMBEDDINGS
from pipeline.storage.cleanup import cause

LEAST_ROWS = 256
"""Minimum number of rows for a one-byte codebook. With fewer rows a full scan is fast."""
_NUMBERS_A_BYTE = 8
_ROWS_A_LIST = 4096
_LISTS_OPENED = 32
_LOOKED_AT_AGAIN = 20
"""Factor of candidates compared again, relative to the requested number of results."""


def bring_up_to_date(table: str) -> Iterator[str]:
    """Create an index for each embedding column without one, and add new rows to existing indexes.

    Yields: a sentence about each column. Costs minutes per million rows. Memory: a sample of 256 embeddings per list.
    Raises: ConfigError when the table does not exist, or Lance is not installed.
    """
    lance = optional("lance", extra="lance")
    try:
        opened = lance.dataset(table, storage_options=storage_options(table))
        indexed = {field for index in opened.describe_indices() for field in index.field_names}
        for column in EMBEDDINGS:
            if column not in opened.schema.names:
                continue
            rows = opened.count_rows(filter=f"{column} IS NOT NULL")
            if column in indexed:
                opened.optimize.optimize_indices(index_names=[f"{column}_idx"])
                yield f"the index of {column} has all {rows:,} rows"
            elif rows < LEAST_ROWS:
                yield f"{column}: {rows:,} rows need no index; from {LEAST_ROWS:,} rows on, one is created"
            else:
                width = opened.schema.field(column).type.list_size
                opened.create_index(
                    column,
                    "IVF_PQ",
                    metric="cosine",
                    num_partitions=max(1, rows // _ROWS_A_LIST),
                    num_sub_vectors=_sub_vectors(width),
                )
                yield f"{column}: created an index of {rows:,} rows"
    except (ValueError, OSError) as error:
        raise ConfigError(f"{without_query(table)} cannot be indexed: {cause(error)}") from error


def _sub_vectors(width: int) -> int:
    """Return the number of bytes of an embedding: one per 8 numbers, or per fewer if 8 does not divide the width."""
    return next(parts for parts in range(max(1, width // _NUMBERS_A_BYTE), width + 1) if not width % parts)


def nearest_in_lance(
    table: str, query: Query, *, top: int, where: str | None = None, columns: Sequence[str] = SHOWN
) -> pa.Table:
    """Search a Lance table like `nearest.nearest`, with the index of the column if it has one.

    Raises: ConfigError when the table does not exist, Lance is not installed, or the condition is not valid Lance SQL.
    """
    lance = optional("lance", extra="lance")
    wanted: dict[str, Any] = {
        "column": query.column,
        "q": query.vector,
        "k": top,
        "metric": "cosine",
        "nprobes": _LISTS_OPENED,
        "refine_factor": _LOOKED_AT_AGAIN,
    }
    try:
        opened = lance.dataset(table, storage_options=storage_options(table))
        nearest_rows = opened.to_table(
            columns=[*columns, "_distance"], nearest=wanted, filter=condition(query, where), prefilter=True
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"{without_query(table)} cannot be searched: {cause(error)}") from error
    similarity = pa.array(1 - nearest_rows["_distance"].to_numpy())
    return nearest_rows.select(list(columns)).add_column(0, SIMILARITY, similarity)

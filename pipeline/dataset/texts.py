"""Texts of plans whose dataset keeps no words (`--texts none` or `hash`).

Until a plan is finished, its texts are in files beside its shard files, with the same row groups. They are deleted before
the plan's `_SUCCESS` is written, so a published plan has none.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.settings import Texts
from pipeline.errors import JobError
from pipeline.layout import texts_file
from pipeline.manifest.rejects import text_hash
from pipeline.storage.cleanup import remove
from pipeline.storage.store import Store


def with_texts(store: Store, file: str, row_group: int, rows: pa.Table) -> pa.Table:
    """Return plan rows of a shard with their texts; unchanged when the texts have been deleted.

    Args:
        file: key of the file of texts.
    """
    try:
        with store.open(file) as opened, pq.ParquetFile(opened) as parquet:
            texts = parquet.read_row_group(row_group)["text"]
    except FileNotFoundError:
        return rows
    place = rows.schema.get_field_index("text")
    return rows.set_column(place, rows.schema.field(place), texts)


def require_texts(store: Store, plan: str, file: str) -> None:
    """Check that a file of texts exists. Raises: JobError, since the rows cannot be annotated as they were planned."""
    try:
        store.read_tail(file, 8)
    except FileNotFoundError as error:
        raise JobError(
            f"the texts of run {plan} were deleted when it was finished, as --texts asks, and parts were deleted later; they "
            f"cannot be made again. Restore them from a backup, or reject their rows with --give-up {plan}"
        ) from error


def remove_texts(store: Store, files: Iterable[tuple[str, int]]) -> None:
    """Delete the texts of a plan's shard files."""
    for file, _ in files:
        remove(store, texts_file(file))


def written_texts(texts: pa.ChunkedArray, kept: Texts) -> pa.Array | pa.ChunkedArray:
    """Return texts as the dataset keeps them. The hash of an empty text is empty: it holds no words."""
    if kept == "keep":
        return texts
    if kept == "none":
        return pa.nulls(len(texts), pa.string())
    return pa.array([text and text_hash(text) for text in texts.to_pylist()], pa.string())

"""Large audio objects as temporary files, so that no process holds their bytes in memory.

The file has no name and is removed by the system however the process ends. It needs room in TMPDIR for one object per
process that fetches.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import RejectedRow
from pipeline.storage.filesystem import resolve
from pipeline.storage.http_body import HttpBody
from pipeline.storage.item_content import item_pieces
from pipeline.storage.items import Item, display_name, item_of
from pipeline.storage.local_file import open_regular
from pipeline.storage.objects import object_info, read_range, refuse_large
from pipeline.storage.refusals import reject_of
from pipeline.storage.retry import DENIED, TRANSIENT, retried
from pipeline.storage.temporary import naming_full_disk

_PIECE_BYTES = 1 << 20
_RANGE_BYTES = 32 << 20
"""Bytes of one ranged GET."""
_VERSION_KEYS = ("ETag", "etag", "LastModified", "last_modified", "updated", "size")
"""Details that differ between two versions of an object, by the names that fsspec's file systems use."""


@contextmanager
def fetched_to_disk(uri: str, *, max_bytes: int, allow: Callable[[str], None] | None = None) -> Iterator[BinaryIO]:
    """Fetch one whole object, or item, as `store.fetch` does, into an unnamed file below TMPDIR that is open at its start.

    Raises: as `store.fetch`; JobError naming TMPDIR when it is full.
    """
    display_uri, item = display_name(uri), item_of(uri)
    filesystem, path = resolve(uri if item is None else item.container)
    with naming_full_disk(Path(tempfile.gettempdir()) / "audio"), tempfile.TemporaryFile() as file:
        copy = partial(_copy if item is None else partial(_copy_item, item), filesystem, path, cast(BinaryIO, file))
        try:
            retried(partial(copy, max_bytes=max_bytes, display_uri=display_uri, allow=allow), what=display_uri)
        except (*TRANSIENT, *DENIED, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RejectedRow.of(reject_of(error, filesystem, path, display_uri)) from error
        file.seek(0)
        yield cast(BinaryIO, file)


def _copy(
    filesystem: AbstractFileSystem,
    path: str,
    file: BinaryIO,
    *,
    max_bytes: int,
    display_uri: str,
    allow: Callable[[str], None] | None,
) -> None:
    """Copy a whole object in one attempt. Raises: RejectedRow; OSError and similar errors, which are retried."""
    file.seek(0)
    file.truncate()
    if isinstance(filesystem, LocalFileSystem):
        with open_regular(path, display_uri, allow) as source:
            size: int | None = os.fstat(source.fileno()).st_size
            refuse_large(size, max_bytes, display_uri)
            _write(source, file, max_bytes, display_uri)
    else:
        before = object_info(filesystem, path)
        size = before["size"]
        refuse_large(size, max_bytes, display_uri)
        if isinstance(filesystem, HTTPFileSystem):
            with HttpBody(filesystem, path) as body:
                _write(cast(BinaryIO, body), file, max_bytes, display_uri)
        else:
            for start in range(0, size or 0, _RANGE_BYTES):
                file.write(read_range(filesystem, path, start, min(start + _RANGE_BYTES, size or 0)))
            after = object_info(filesystem, path)
            if any(before.get(key) != after.get(key) for key in _VERSION_KEYS):
                raise OSError(errno.EIO, "the object changed while it was read")
    file.flush()
    if size is not None and file.tell() != size:
        raise OSError(errno.EIO, f"{file.tell()} of {size} bytes arrived")


def _copy_item(
    item: Item,
    filesystem: AbstractFileSystem,
    path: str,
    file: BinaryIO,
    *,
    max_bytes: int,
    display_uri: str,
    allow: Callable[[str], None] | None,
) -> None:
    """Copy one item of a container in one attempt. Raises: as `_copy`."""
    file.seek(0)
    file.truncate()
    for piece in item_pieces(filesystem, path, item, max_bytes=max_bytes, display_uri=display_uri, allow=allow):
        file.write(piece)
    file.flush()


def _write(source: BinaryIO, file: BinaryIO, max_bytes: int, display_uri: str) -> None:
    while piece := source.read(_PIECE_BYTES):
        file.write(piece)
        refuse_large(file.tell(), max_bytes, display_uri)

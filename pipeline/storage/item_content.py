"""Content of one item of a container (`pipeline.storage.items`).

A member of a plain tar is one range of bytes, read with the header before it: a tar that was written again since it was
indexed has another header there, and the row is rejected instead of getting another recording's audio. Members of
compressed tars and rows of Parquet files cannot be read by themselves: their neighbours are decoded with them and kept for
the next calls (`pipeline.storage.slices`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.storage.items import Item, TarItem
from pipeline.storage.local_file import open_regular
from pipeline.storage.objects import read_range, refuse_large
from pipeline.storage.slices import HEADER_BYTES, item_slice
from pipeline.storage.windows import open_windows

Allow = Callable[[str], None] | None

_PIECE_BYTES = 32 << 20
_WINDOW_BYTES = 4 << 20
"""Bytes of one read of a container that is decoded."""
_CUT_NAME_BYTES = 99
"""Length from which the name in a header may be the start of a longer one, which is in a header before it."""


def read_item(
    filesystem: AbstractFileSystem, path: str, item: Item, *, max_bytes: int, display_uri: str, allow: Allow
) -> bytes:
    """Read one item in one attempt. Raises: as `item_pieces`."""
    return b"".join(item_pieces(filesystem, path, item, max_bytes=max_bytes, display_uri=display_uri, allow=allow))


def item_pieces(
    filesystem: AbstractFileSystem, path: str, item: Item, *, max_bytes: int, display_uri: str, allow: Allow
) -> Iterator[bytes]:
    """Yield the content of one item, in pieces of at most `_PIECE_BYTES`.

    Args:
        path: the container in its file system.
    Raises: RejectedRow TOO_LARGE; CHANGED when the container does not have the item at its place; DAMAGED when the bytes
        there do not decode; NOT_ALLOWED for http, whose servers need not answer with ranges, and from `allow`; NOT_FOUND
        for a row without audio; OSError and similar errors, which may be retried.
    """
    if isinstance(filesystem, HTTPFileSystem):
        detail = f"{display_uri} is inside a file on an http server; copy that file to a disk or an object store"
        raise RejectedRow(Reason.NOT_ALLOWED, detail, Stage.FETCH)
    if isinstance(item, TarItem):
        refuse_large(item.size, max_bytes, display_uri)
        if not item.is_compressed:
            yield from _member(filesystem, path, item, display_uri, allow)
            return

    def open_container() -> AbstractContextManager[BinaryIO]:
        if isinstance(filesystem, LocalFileSystem):
            return open_regular(path, display_uri, allow)
        return open_windows(filesystem, path, window_bytes=_WINDOW_BYTES, retrying=False)

    slice_ = item_slice(open_container, item, display_uri)
    refuse_large(slice_.size_of(item, display_uri), max_bytes, display_uri)
    header, size = (
        slice_.read(item, 0, HEADER_BYTES if isinstance(item, TarItem) else 0),
        slice_.size_of(item, display_uri),
    )
    if isinstance(item, TarItem):
        check_header(header, item, display_uri)
    for start in range(0, size, _PIECE_BYTES):
        yield slice_.read(item, len(header) + start, min(_PIECE_BYTES, size - start))


def _member(
    filesystem: AbstractFileSystem, path: str, item: TarItem, display_uri: str, allow: Allow
) -> Iterator[bytes]:
    """Yield the content of a member of a plain tar, whose header is read with its first piece."""
    start, end = item.offset - HEADER_BYTES, item.offset + item.size
    if start < 0:
        raise changed(display_uri)
    if isinstance(filesystem, LocalFileSystem):
        with open_regular(path, display_uri, allow) as file:
            file.seek(start)
            yield from _checked(file.read, start, end, item, display_uri)
        return
    at = start

    def read(count: int) -> bytes:
        nonlocal at
        content = read_range(filesystem, path, at, at + count)
        at += len(content)
        return content

    yield from _checked(read, start, end, item, display_uri)


def _checked(read: Callable[[int], bytes], start: int, end: int, item: TarItem, display_uri: str) -> Iterator[bytes]:
    first = read(min(_PIECE_BYTES, end - start))
    check_header(first[:HEADER_BYTES], item, display_uri)
    done = start + len(first)
    yield first[HEADER_BYTES:]
    while first and done < end and (piece := read(min(_PIECE_BYTES, end - done))):
        done += len(piece)
        yield piece
    if done != end:
        detail = f"{display_uri} is cut off: {done - item.offset:,} of {item.size:,} bytes exist"
        raise RejectedRow(Reason.TRUNCATED, detail, Stage.FETCH)


def check_header(block: bytes, item: TarItem, display_uri: str) -> None:
    """Compare the header before a member's content with its address. Raises: RejectedRow CHANGED."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise changed(display_uri) from None
    if header.size != item.size or not header.isreg():
        raise changed(display_uri)
    stated, name = (text.encode("utf-8", "surrogateescape") for text in (header.name, item.name))
    # a long name, or one that is not ASCII, is in a header of its own, and this one has a shortened form of it
    if stated != name and name.isascii() and len(name) <= _CUT_NAME_BYTES:
        raise changed(display_uri)


def changed(display_uri: str) -> RejectedRow:
    """Return the reject of an item that its container does not have at the place of its address."""
    detail = f"{display_uri} is not there: its container has changed since it was indexed. Index it again"
    return RejectedRow(Reason.CHANGED, detail, Stage.FETCH)

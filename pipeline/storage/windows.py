"""Files of any store, opened to read some parts of them without what is between, such as the headers of a tar."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.items import is_compressed_tar
from pipeline.storage.objects import object_info, read_range
from pipeline.storage.retry import retried

_LOCAL_BYTES, _REMOTE_BYTES, _COMPRESSED_BYTES = 4 << 10, 64 << 10, 4 << 20
"""Bytes of one read: on a disk a header and small files after it, in a store what one request brings in the same time."""


@contextmanager
def open_windows(
    filesystem: AbstractFileSystem, path: str, *, window_bytes: int = _REMOTE_BYTES, retrying: bool = True
) -> Iterator[BinaryIO]:
    """Open a file that is read in windows, where it is read.

    Args:
        window_bytes: bytes of one read from a store.
        retrying: whether failed reads are retried (`pipeline.storage.retry`).
    Raises: OSError and other errors of stores.
    """
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - its descriptor is what is read
            size = os.fstat(file.fileno()).st_size
            read = lambda start, end: os.pread(file.fileno(), end - start, start)  # noqa: E731
            yield cast(BinaryIO, WindowFile(read, size, _LOCAL_BYTES))
        return
    size = int(object_info(filesystem, path)["size"])
    fetch = partial(read_range, filesystem, path)
    read = (lambda start, end: retried(partial(fetch, start, end), what=path)) if retrying else fetch
    yield cast(BinaryIO, WindowFile(read, size, window_bytes))


@contextmanager
def open_tar(filesystem: AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """Open a tar, decompressed. A plain one is read in windows; of a compressed one, seeks read all.

    Raises: OSError and other errors of stores.
    """
    if is_compressed_tar(path):
        with (
            open_windows(filesystem, path, window_bytes=_COMPRESSED_BYTES) as raw,
            gzip.GzipFile(fileobj=raw) as stream,
        ):
            yield cast(BinaryIO, stream)
    else:
        with open_windows(filesystem, path) as file:
            yield file


class WindowFile(io.RawIOBase):
    """A file that is read in windows, to fetch a header and the small files after it at once, but no audio.

    Args:
        read_range: returns the bytes from a position to before another.
        size: size of the file in bytes.
        window_bytes: bytes to read at least.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, window_bytes: int) -> None:
        super().__init__()
        self._read_range, self._size, self._window_bytes = read_range, size, window_bytes
        self._at, self._start, self._window = 0, 0, b""

    def readable(self) -> bool:  # noqa: D102 - documented by io.RawIOBase, like the next four
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:  # noqa: D102
        return self._at

    def read(self, size: int = -1) -> bytes:  # noqa: D102
        first = self._at - self._start
        if size < 0 or first < 0 or first + size > len(self._window):
            end = self._size if size < 0 else min(self._size, self._at + max(size, self._window_bytes))
            self._window = self._read_range(self._at, end) if self._at < end else b""
            self._start, first = self._at, 0
        content = self._window[first : first + size if size >= 0 else None]
        self._at += len(content)
        return content

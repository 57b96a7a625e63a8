"""The bytes of one audio file, in memory or mapped from a file on disk."""

from __future__ import annotations

import io
import mmap
import os
from typing import Any, BinaryIO, cast

Content = bytes | mmap.mmap
"""A whole file. Slices are bytes; a mapping has no other method of bytes than `find`."""

_KEPT_PAGES_BYTES = 64 << 20
"""Bytes read from a mapping after which its pages are released: they then do not count as memory of this process."""


def as_file(content: Content, start: int = 0) -> BinaryIO:
    """Open the content from byte `start` on as a seekable file, without copying it (bytes: only if `start` is 0)."""
    if isinstance(content, bytes):
        return io.BytesIO(content[start:])
    return cast(BinaryIO, _MappedStream(content, start))


class _MappedStream(io.RawIOBase):
    """A mapping as a file, which releases the pages that have been read."""

    def __init__(self, mapping: mmap.mmap, start: int) -> None:
        super().__init__()
        self._mapping, self._start, self._size = mapping, start, len(mapping) - start
        self._at = self._read_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the signature of io.RawIOBase
        begin = self._start + self._at
        piece = self._mapping[begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        self._read_bytes += len(piece)
        if self._read_bytes >= _KEPT_PAGES_BYTES:
            self._mapping.madvise(mmap.MADV_DONTNEED)
            self._read_bytes = 0
        return len(piece)

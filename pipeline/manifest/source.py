"""Open a manifest and detect its format from its content.

`open_manifest` decompresses gzip and zstd and detects JSON Lines, CSV or Parquet, whatever the file name. Memory holds
one block and the current line, up to `MAX_LINE_BYTES`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import re
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem

from pipeline.errors import ConfigError
from pipeline.manifest.store import store_errors, unchanged
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.http_body import HttpBody
from pipeline.storage.hub import is_hub
from pipeline.storage.items import is_tar_name
from pipeline.storage.listing import is_audio_name, printable
from pipeline.storage.windows import open_tar, open_windows

MAX_LINE_BYTES = 4 << 20
"""Longest line or CSV record; longer ones are rejected unread. Far above any transcript (1 MB must be accepted)."""

READ_BYTES = 1 << 20
_HEAD_BYTES = 64 << 10
_MAGIC = {
    **{b"PK\x03\x04": "a ZIP or XLSX file", b"\x89PNG": "a PNG image", b"RIFF": "a WAV file", b"fLaC": "a FLAC file"},
    **{b"ID3": "an MP3 file", b"OggS": "an Ogg file", b"%PDF": "a PDF file", b"\x7fELF": "a program"},
    **{b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file", b"ORC": "an ORC file", b"ARROW1": "an Arrow or Feather file"},
    **{b"Obj\x01": "an Avro file", b"SQLite format 3": "an SQLite database", b"PARE": "an encrypted Parquet file"},
    **{b"\x1f\x8b": "a file compressed twice", b"\x28\xb5\x2f\xfd": "a file compressed twice"},
    **{b"PAR1": "a Parquet file inside gzip or zstd (Parquet compresses itself: give it as it is)"},
}
_AUDIO_MAGIC = (b"RIFF", b"fLaC", b"ID3", b"OggS")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_ACCEPTED = "JSON Lines, CSV with a header (UTF-8; also .gz, .zst), Parquet and tar are read"


class Form(StrEnum):
    """Format of a manifest's content."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    TAR = "tar"
    EMPTY = "empty"


class ByteReader(Protocol):
    """The part of the binary file interface used to read text manifests."""

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes; empty at the end."""


class OverLong(bytes):
    """The start of a line longer than `MAX_LINE_BYTES`; the rest is skipped."""


@dataclass(frozen=True, slots=True)
class Source:
    """An open manifest.

    Attributes:
        uri: the URI as given.
        display_uri: the URI without the query, for outputs and messages.
        form: the detected format.
        raw: the seekable file, for Parquet and tar.
        blocks: decompressed bytes without the byte-order mark, for text formats.
        reopen: opens the file again to read some parts of it alone, see `open_windows`.
    """

    uri: str
    display_uri: str
    form: Form
    raw: BinaryIO
    blocks: Iterator[bytes]
    reopen: Callable[[], AbstractContextManager[BinaryIO]]


# ---------------------------------------------------------------------------------------------------- files to blocks


@contextmanager
def open_manifest(uri: str) -> Iterator[Source]:
    """Open a manifest and detect its format.

    Raises: ConfigError for files that are missing, forbidden or not manifests, with what they look like; JobError when
        the store fails or the manifest changes while it is read. Both can also be raised while the blocks are read: a
        truncated stream is not the whole manifest.
    """
    display_uri = without_query(uri)
    with store_errors(display_uri):
        filesystem, path = resolve(uri)
    if is_tar_name(display_uri) and isinstance(filesystem, HTTPFileSystem):
        raise ConfigError(f"manifest {display_uri}: tar files are not read over http; copy it to a disk or a store")
    reopen = partial(open_windows, filesystem, path)
    with unchanged(filesystem, path, display_uri), contextlib.ExitStack() as stack:
        if is_tar_name(display_uri):
            with store_errors(display_uri):
                yield Source(
                    uri, display_uri, Form.TAR, stack.enter_context(open_tar(filesystem, path)), iter(()), reopen
                )
            return
        with store_errors(display_uri):
            raw: BinaryIO = stack.enter_context(_open(filesystem, path))
            start = raw.read(4)
        whole = io.BufferedReader(_Rejoined(start, raw), READ_BYTES)
        if start == b"PAR1":
            if isinstance(filesystem, HTTPFileSystem):
                raw = stack.enter_context(tempfile.TemporaryFile())
                with store_errors(display_uri):
                    shutil.copyfileobj(whole, raw, READ_BYTES)
            raw.seek(0)
            yield Source(uri, display_uri, Form.PARQUET, raw, iter(()), reopen)
            return
        reader: ByteReader = whole
        if start[:2] == b"\x1f\x8b":
            reader = stack.enter_context(gzip.GzipFile(fileobj=whole))
        elif start == b"\x28\xb5\x2f\xfd" or (start[1:] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
            reader = stack.enter_context(_zstd(whole))
        blocks = _blocks(reader, display_uri)
        head = b""
        while len(head) < _HEAD_BYTES and (block := next(blocks, b"")):
            head += block
        form = _form(head, display_uri)
        yield Source(uri, display_uri, form, raw, itertools.chain([head.removeprefix(b"\xef\xbb\xbf")], blocks), reopen)


def _open(filesystem: AbstractFileSystem, path: str) -> AbstractContextManager[BinaryIO]:
    """Open a manifest's bytes. Over http, one response gives one version of all bytes, but cannot seek."""
    if isinstance(filesystem, HTTPFileSystem):
        return cast(AbstractContextManager[BinaryIO], io.BufferedReader(HttpBody(filesystem, path), READ_BYTES))
    if is_hub(filesystem):
        return open_windows(filesystem, path, window_bytes=READ_BYTES)
    return cast(AbstractContextManager[BinaryIO], filesystem.open(path, "rb"))


class _Rejoined(io.RawIOBase):
    """A stream with the first bytes, which were read to detect the format, put back: an http stream cannot seek."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the buffer protocol has no type before 3.12
        content = self._start or self._rest.read(len(buffer))
        self._start = b""
        buffer[: len(content)] = content
        return len(content)


def _zstd(raw: io.BufferedIOBase) -> AbstractContextManager[ByteReader]:
    """Open a zstd stream with Arrow's reader; zstandard's ends without an error where a file is truncated."""
    return contextlib.closing(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


def _blocks(reader: ByteReader, display_uri: str) -> Iterator[bytes]:
    done = 0
    with store_errors(display_uri):
        try:
            while block := reader.read(READ_BYTES):
                done += len(block)
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(_broken(display_uri, done, str(error))) from None
        except OSError as error:
            if "ZSTD" in str(error) or "Truncated compressed" in str(error):  # Arrow raises both as a plain OSError
                raise ConfigError(_broken(display_uri, done, str(error))) from None
            raise


def _broken(display_uri: str, done: int, why: str) -> str:
    return (
        f"manifest {display_uri}: its compressed data is damaged after {done:,} bytes of text ({why}): it is incomplete"
    )


def lines_of(blocks: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines of a stream, many at a time: the 1-based number of the first, and the lines without newlines.

    A line longer than `MAX_LINE_BYTES` is yielded as an `OverLong`; no more of it is kept in memory.
    """
    number, pending = 1, b""
    over: OverLong | None = None
    for block in blocks:
        first, *others = block.split(b"\n")
        if over is None:
            pending += first
            if len(pending) > MAX_LINE_BYTES:
                over = OverLong(pending[:_HEAD_BYTES])
        if not others:
            continue
        lines = [over if over is not None else pending, *others[:-1]]
        pending, over = others[-1], None
        yield number, lines
        number += len(lines)
    if over is not None or pending:
        yield number, [over if over is not None else pending]


# ---------------------------------------------------------------------------------------------------- bytes to a form


def make_one_of(uri: str) -> str:
    """Return the end of a message that explains how to make a manifest of audio."""
    source = shlex.quote(printable(without_query(uri)))
    return f"make a manifest with `python -m jobs.make_manifest {source} --output manifest.jsonl` and give that"


def _form(head: bytes, display_uri: str) -> Form:
    """Detect the format from the first 64 KiB. Raises: ConfigError with what the content looks like instead."""
    if is_audio_name(display_uri) and head and not _is_text(head[:256]):
        raise ConfigError(
            f"manifest {display_uri} is an audio file, not a manifest of audio: {make_one_of(display_uri)}"
        )
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:2] == b"{\0" or head[:2] == b"\0{":
        raise ConfigError(
            f"manifest {display_uri} is UTF-16 or UTF-32 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
        )
    for magic, what in _MAGIC.items():  # a header may start like `PARENT,audio`: skip text
        if head.startswith(magic) and not _is_text(head[:256]):
            advice = make_one_of(display_uri) if magic in _AUDIO_MAGIC else _ACCEPTED
            raise ConfigError(f"manifest {display_uri} is {what}; {advice}")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not text:
        return Form.EMPTY
    lines = text.split(b"\n")
    whole = [line.strip() for line in (lines[:-1] or lines) if line.strip()]
    objects = sum(line.startswith(b"{") and line.endswith(b"}") for line in whole)
    if whole[0] == b"{" and not objects and len(whole) > 1:
        raise ConfigError(
            f"manifest {display_uri} is JSON over several lines; write one object a line (jq -c). {_ACCEPTED}"
        )
    if text[:1] == b"{":
        return Form.JSONL
    if text[:1] == b"[" and not (objects and whole[0].endswith(b"]")):
        raise ConfigError(f"manifest {display_uri} is a JSON array; write one object a line (jq -c '.[]'). {_ACCEPTED}")
    if objects * 2 > len(whole):  # the first line is damaged
        return Form.JSONL
    if text[:1] == b"<":
        raise ConfigError(f"manifest {display_uri} is an HTML or XML page, perhaps a log-in or error page; {_ACCEPTED}")
    if not _is_text(lines[0]):
        raise ConfigError(f"manifest {display_uri} is binary or not UTF-8 in its first line; {_ACCEPTED}")
    return Form.CSV


def _is_text(line: bytes) -> bool:
    if _BINARY.search(line):
        return False
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # truncated at the end of the head
    return True

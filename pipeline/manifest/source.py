"""Open a manifest and judge its format by its content.

`open_manifest` sees through gzip and zstd, and says whether the bytes are JSON Lines, CSV or Parquet, whatever the file is
called. One block is held, and the line being read, up to `MAX_LINE_BYTES`.
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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem

from pipeline.errors import ConfigError
from pipeline.manifest.store import store_errors, unchanged
from pipeline.redaction import without_query
from pipeline.storage.http_body import HttpBody
from pipeline.storage.listing import is_audio_name, printable
from pipeline.storage.store import resolve

MAX_LINE_BYTES = 4 << 20
"""A longer line, or CSV record, is rejected unread. Far above any transcript (1 MB must pass), far below the memory."""

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
_ACCEPTED = "JSON Lines, CSV with a header (UTF-8; also .gz, .zst) and Parquet are read"


class Form(StrEnum):
    """What a manifest's bytes are."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    EMPTY = "empty"


class ByteReader(Protocol):
    """The part of a binary file we read text manifests through."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; empty at the end."""


class OverLong(bytes):
    """The start of a line longer than `MAX_LINE_BYTES`; the rest was skipped."""


@dataclass(frozen=True, slots=True)
class Source:
    """An open manifest.

    Attributes:
        shown: its URI without the query, as outputs and messages have it.
        form: what it is.
        raw: the seekable file, for Parquet.
        blocks: decompressed bytes without the byte-order mark, for the text forms.
    """

    shown: str
    form: Form
    raw: BinaryIO
    blocks: Iterator[bytes]


# ---------------------------------------------------------------------------------------------------- files to blocks


@contextmanager
def open_manifest(uri: str) -> Iterator[Source]:
    """Open a manifest and find out what it is.

    Raises: ConfigError for what is not there, not allowed or no manifest, with what it looks like; JobError when the
    store fails, or when the manifest is another file at the end than it was at the start. Both can also come while the
    blocks are read: a stream that breaks off is not the whole manifest.
    """
    shown = without_query(uri)
    with store_errors(shown):
        filesystem, path = resolve(uri)
    with unchanged(filesystem, path, shown), contextlib.ExitStack() as stack:
        with store_errors(shown):
            raw: BinaryIO = stack.enter_context(_open(filesystem, path))
            start = raw.read(4)
        whole = io.BufferedReader(_Rejoined(start, raw), READ_BYTES)
        if start == b"PAR1":
            if isinstance(filesystem, HTTPFileSystem):
                raw = stack.enter_context(tempfile.TemporaryFile())
                with store_errors(shown):
                    shutil.copyfileobj(whole, raw, READ_BYTES)
            raw.seek(0)
            yield Source(shown, Form.PARQUET, raw, iter(()))
            return
        reader: ByteReader = whole
        if start[:2] == b"\x1f\x8b":
            reader = stack.enter_context(gzip.GzipFile(fileobj=whole))
        elif start == b"\x28\xb5\x2f\xfd" or (start[1:] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
            reader = stack.enter_context(_zstd(whole))
        blocks = _blocks(reader, shown)
        head = b""
        while len(head) < _HEAD_BYTES and (block := next(blocks, b"")):
            head += block
        form = _form(head, shown)
        yield Source(shown, form, raw, itertools.chain([head.removeprefix(b"\xef\xbb\xbf")], blocks))


def _open(filesystem: AbstractFileSystem, path: str) -> BinaryIO:
    """A manifest's bytes. Over http in one answer, so that all of them are of one version; it cannot be read from elsewhere."""
    if isinstance(filesystem, HTTPFileSystem):
        return cast(BinaryIO, io.BufferedReader(HttpBody(filesystem, path), READ_BYTES))
    return cast(BinaryIO, filesystem.open(path, "rb"))


class _Rejoined(io.RawIOBase):
    """A stream with the bytes that were taken to look at put back: an http stream cannot seek."""

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
    """Arrow's reader, not zstandard's, whose stream ends without a word where a file was cut."""
    return contextlib.closing(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


def _blocks(reader: ByteReader, shown: str) -> Iterator[bytes]:
    done = 0
    with store_errors(shown):
        try:
            while block := reader.read(READ_BYTES):
                done += len(block)
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(_broken(shown, done, str(error))) from None
        except OSError as error:
            if "ZSTD" in str(error) or "Truncated compressed" in str(error):  # Arrow says both as a plain OSError
                raise ConfigError(_broken(shown, done, str(error))) from None
            raise


def _broken(shown: str, done: int, why: str) -> str:
    return f"manifest {shown}: its compression is broken after {done:,} bytes of text ({why}): it is not whole"


def lines_of(blocks: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a stream, many at a time: the 1-based number of the first, and the lines without their newline.

    A line longer than `MAX_LINE_BYTES` comes as an `OverLong`; not more of it than that is held.
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
    """How to get a manifest of audio, as the end of a sentence."""
    source = shlex.quote(printable(without_query(uri)))
    return f"make a manifest with `python -m jobs.make_manifest {source} --output manifest.jsonl` and give that"


def _form(head: bytes, shown: str) -> Form:
    """Judge by the first 64 KiB. Raises: ConfigError that says what it looks like instead."""
    if is_audio_name(shown) and head and not _is_text(head[:256]):
        raise ConfigError(f"manifest {shown} is an audio file, not a manifest of audio: {make_one_of(shown)}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:2] == b"{\0" or head[:2] == b"\0{":
        raise ConfigError(f"manifest {shown} is UTF-16 or UTF-32 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    for magic, what in _MAGIC.items():  # a header may read `PARENT,audio`: magic that is letters counts before binary
        if head.startswith(magic) and not _is_text(head[:256]):
            advice = make_one_of(shown) if magic in _AUDIO_MAGIC else _ACCEPTED
            raise ConfigError(f"manifest {shown} is {what}; {advice}")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not text:
        return Form.EMPTY
    lines = text.split(b"\n")
    whole = [line.strip() for line in (lines[:-1] or lines) if line.strip()]
    objects = sum(line.startswith(b"{") and line.endswith(b"}") for line in whole)
    if whole[0] == b"{" and not objects and len(whole) > 1:
        raise ConfigError(f"manifest {shown} is JSON over several lines; write one object a line (jq -c). {_ACCEPTED}")
    if text[:1] == b"{":
        return Form.JSONL
    if text[:1] == b"[" and not (objects and whole[0].endswith(b"]")):
        raise ConfigError(f"manifest {shown} is a JSON array; write one object a line (jq -c '.[]'). {_ACCEPTED}")
    if objects * 2 > len(whole):  # the first line is a damaged one
        return Form.JSONL
    if text[:1] == b"<":
        raise ConfigError(f"manifest {shown} is an HTML or XML page, perhaps a log-in or error page; {_ACCEPTED}")
    if not _is_text(lines[0]):
        raise ConfigError(f"manifest {shown} is binary or not UTF-8 in its first line; {_ACCEPTED}")
    return Form.CSV


def _is_text(line: bytes) -> bool:
    if _BINARY.search(line):
        return False
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # cut at the end of the head
    return True

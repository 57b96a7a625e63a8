"""Parts of a JSON Lines manifest that several processes can read at the same time, in the chunks of one process.

Chunks decide the types of columns, so they must not depend on the number of readers. The lines of each range of bytes are
counted first; then each chunk is read by the process in whose range it begins. Where the chunks, or the spelling of columns,
depend on more than the numbers of lines, `IrregularError` is raised, and the manifest is read by one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from fsspec.implementations.http import HTTPFileSystem

from pipeline.manifest.jsonl import records_of_lines
from pipeline.manifest.partitions import Partitioned, partition_columns
from pipeline.manifest.read import CHUNK_ROWS, ManifestChunk, Seen, chunk_of
from pipeline.manifest.records import MAX_COLUMNS, Names
from pipeline.manifest.source import READ_BYTES, Form, lines_of, open_manifest
from pipeline.manifest.store import store_errors
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r"
_HEAD_BYTES = 64


class IrregularError(Exception):
    """The manifest cannot be read in parts."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Number of lines that begin in a range of bytes, and of those of them that are not blank."""

    lines: int
    rows: int


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive chunks of a manifest.

    Attributes:
        start: byte; the first line that begins there or later has the number `line`.
        skipped: number of rows, which are lines that are not blank, before the first chunk.
        rows: number of rows of all chunks.
    """

    start: int
    line: int
    skipped: int
    rows: int


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a chunk of a span, which only the reader of the whole manifest can check.

    Attributes:
        rows: number of lines of the chunk that are records.
        spelling: the columns of the span so far, by their name in the output in lower case.
    """

    rows: int
    names: tuple[str, ...]
    spelling: dict[str, str]


def is_divisible(uri: str) -> bool:
    """Return whether a manifest is plain JSON Lines in a store that can read from any byte.

    Raises: ConfigError and JobError as `open_manifest`.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, HTTPFileSystem):
        return False
    with store_errors(without_query(uri)), filesystem.open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.removeprefix(_BOM).lstrip(b" \t\r\n").startswith(b"{"):
        return False
    with open_manifest(uri) as source:
        return source.form is Form.JSONL


def count_lines(uri: str, start: int, end: int) -> Counted:
    """Count the lines that begin in a range of bytes."""
    lines = rows = 0
    with _opened(uri) as file:
        for _, some in lines_of(_blocks(file, start, end)):
            lines += len(some)
            rows += sum(1 for line in some if line.strip(_BLANK))
    return Counted(lines, rows)


def spans(starts: Sequence[int], counts: Sequence[Counted], chunk_rows: int = CHUNK_ROWS) -> list[Span]:
    """Return the spans of a manifest from the counts of consecutive ranges, which begin at `starts`."""
    total, found = sum(counted.rows for counted in counts), list[Span]()
    line, before = 1, 0
    for start, counted in zip(starts, counts, strict=True):
        skipped = -before % chunk_rows
        first = before + skipped
        last = before + counted.rows + (-(before + counted.rows) % chunk_rows)
        if first < before + counted.rows:
            found.append(Span(start, line, skipped, min(last, total) - first))
        line += counted.lines
        before += counted.rows
    return found


def read_span(
    uri: str, span: Span, *, audio_optional: bool, chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[ManifestChunk, Columns]]:
    """Read a span. Raises: IrregularError when a chunk ends early, because its lines are long."""
    names, left, stated = Names(), span.rows, partition_columns(uri)
    with _opened(uri) as file:
        lines = _after(span.skipped, lines_of(_blocks(file, span.start)))
        numbered = ((span.line - 1 + first, some) for first, some in lines)
        for records in islice(records_of_lines(numbered, chunk_rows, names), -(-span.rows // chunk_rows)):
            given = len(records.lines) + len(records.rejects)
            if given != min(chunk_rows, left):
                raise IrregularError
            left -= given
            partitioned = Partitioned(records, stated)
            chunk = chunk_of(partitioned, uri, without_query(uri), audio_optional=audio_optional)
            yield chunk, Columns(len(records.lines), tuple(partitioned.names), dict(names.spelling))
    if left:
        raise IrregularError


@dataclass
class Joined:
    """The spans of one manifest, joined in their order."""

    seen: Seen
    _spelling: dict[str, str] = field(default_factory=dict)

    def add(self, columns: Columns) -> None:
        """Check the columns of the next chunk.

        Raises: IrregularError when an earlier span spells a column in another way, or has so many that these are too many;
            ConfigError when the file is not a manifest.
        """
        for key, name in columns.spelling.items():
            if self._spelling.setdefault(key, name) != name:
                raise IrregularError
        if len(self._spelling) > MAX_COLUMNS:
            raise IrregularError
        self.seen.add(columns.rows, columns.names)


@contextmanager
def _opened(uri: str) -> Iterator[BinaryIO]:
    with store_errors(without_query(uri)):
        filesystem, path = resolve(uri)
        with filesystem.open(path, "rb") as file:
            yield file


def _blocks(file: BinaryIO, start: int, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of the lines that begin in a range of bytes, without the byte-order mark of the file."""
    position = max(0, start - 1)  # a newline there ends the line before
    file.seek(position)
    begun = start == 0
    while block := file.read(READ_BYTES):
        first = 0
        if not begun:
            first = block.find(b"\n") + 1
            begun = first > 0 and (end is None or position + first < end)
            if first and not begun:
                return
        if begun:
            mark = _BOM if position == first == 0 else b""
            last = -1 if end is None else block.find(b"\n", max(first, end - 1 - position))
            if last >= 0:
                yield block[first : last + 1].removeprefix(mark)
                return
            yield block[first:].removeprefix(mark)
        position += len(block)


def _after(rows: int, lines: Iterable[tuple[int, list[bytes]]]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield numbered lines without the first that are not blank, and without the blank ones before these."""
    for first, some in lines:
        place = 0
        while rows and place < len(some):
            rows -= bool(some[place].strip(_BLANK))
            place += 1
        if place < len(some):
            yield first + place, some[place:]

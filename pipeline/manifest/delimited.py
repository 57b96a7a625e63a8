"""Records of a CSV manifest: RFC 4180 with a header, delimited by comma, tab or semicolon, or as a line `sep=|` says.

Quoted cells may hold newlines; a line number is where the record starts. Cells have no types: a column we do not know
is text as it stands (`007`, and an empty cell is an empty string), an empty cell of one we know is absent.

A record that does not parse is taken for a stray quote: its first line is rejected and reading goes on with the next,
so that an unclosed quote costs its own line and not the file. One case cannot be told from a cell of several lines and
is read as one: an open quote whose next quote, lines later, stands at the end of a cell.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.errors import ConfigError, Reason
from pipeline.manifest.fields import KNOWN
from pipeline.manifest.records import CHUNK_BYTES, BadLine, BadName, Names, raw_text
from pipeline.manifest.source import MAX_LINE_BYTES, OverLong, lines_of

_DECLARED = re.compile('"?sep=([,;|\t])"?', re.IGNORECASE)
"""A first line in which Excel says what delimits cells."""


class CsvRecords:
    """Some rows of a CSV manifest."""

    from_csv = True

    def __init__(self, header: Sequence[str]) -> None:
        self.lines: list[int] = []
        self.bad: list[BadLine] = []
        self.names: dict[str, None] = dict.fromkeys(header)
        self.rows: list[list[str]] = []
        self.texts: list[bytes] = []
        self._position = {name: position for position, name in enumerate(header)}

    def raw(self, position: int) -> str:
        """The first line of a row."""
        return raw_text(self.texts[position])

    def values(self, name: str) -> list[object]:
        """One column, as text."""
        column = self._position[name]
        return [row[column] for row in self.rows]

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """One pass-through column of the kept rows, as text."""
        column = self._position[name]
        rows = self.rows if kept is None else [self.rows[position] for position in kept]
        return pa.array([row[column] for row in rows], pa.string())


class _Feed:
    """Physical lines for `csv.reader`, remembered per record so that they can be read again.

    A record that outgrows `MAX_LINE_BYTES` ends with `_TooLong`. Bytes that are no UTF-8 travel as surrogates, since no
    byte of theirs can be a quote or a delimiter.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._lines = ((number, line) for first, lines in lines_of(blocks) for number, line in enumerate(lines, first))
        self._again: list[tuple[int, bytes]] = []
        self.taken: list[tuple[int, bytes]] = []
        self.size = 0
        self.clean = True

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        _, line = taken = self._again.pop() if self._again else next(self._lines)
        self.taken.append(taken)
        self.size += len(line)
        if self.size > MAX_LINE_BYTES or type(line) is OverLong:
            raise _TooLong
        try:
            return line.decode() + "\n"
        except UnicodeDecodeError:
            self.clean = False
            return line.decode("utf-8", "surrogateescape") + "\n"

    def start_record(self) -> None:
        """Forget the lines of the record before."""
        self.taken.clear()
        self.size, self.clean = 0, True

    def give_back(self, kept: int) -> None:
        """Read the record's lines again from its `kept`-th on."""
        self._again += reversed(self.taken[kept:])
        del self.taken[kept:]


class _TooLong(Exception):
    """The record does not end within `MAX_LINE_BYTES`."""


def read_csv(blocks: Iterator[bytes], chunk_rows: int, shown: str) -> Iterator[CsvRecords]:
    """Records of a CSV stream, at most `chunk_rows` records and about `CHUNK_BYTES` at a time.

    Raises: ConfigError for a header that cannot be one.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # of the process; 128 KiB would refuse 1 MB texts
    feed = _Feed(blocks)
    header, delimiter = _header(feed, shown)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    records, size = CsvRecords(header), 0
    while True:
        feed.start_record()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except (csv.Error, _TooLong) as error:
            records.bad.append(_stray(feed, error))
        else:
            if not feed.taken[0][1].strip() and len(cells) <= 1:
                continue  # a blank line; `""` is a record of one empty cell
            if len(cells) != len(header):
                _reject_count(feed, records, len(cells), len(header), delimiter)
            elif not feed.clean:
                _reject(records, feed, "not UTF-8: the record holds bytes of another encoding")
            else:
                records.lines.append(feed.taken[0][0])
                records.rows.append(cells)
                records.texts.append(feed.taken[0][1])
        size += feed.size
        if size >= CHUNK_BYTES or len(records.lines) + len(records.bad) >= chunk_rows:
            yield records
            records, size = CsvRecords(header), 0
    yield records  # also when empty: a header alone shows whether this is a manifest


def _header(feed: _Feed, shown: str) -> tuple[list[str], str]:
    try:
        first = next(feed)
        while not first.strip():
            first = next(feed)
        declared = _DECLARED.fullmatch(first.strip("\ufeff \r\n"))
        if declared:
            first = next(feed, "")
    except _TooLong:
        raise ConfigError(f"manifest {shown}: its header is longer than {MAX_LINE_BYTES:,} bytes") from None
    try:
        delimiter = declared[1] if declared else delimiter_of(first)
        cells = [name.strip() for name in next(csv.reader([first], delimiter=delimiter, strict=True))]
        if not feed.clean:
            raise BadName("it is not UTF-8")
        Names().add(cells)
    except csv.Error as error:
        raise ConfigError(f"manifest {shown}: its header is not CSV: {error}") from None
    except BadName as error:
        raise ConfigError(f"manifest {shown}: its header cannot be read: {error}") from None
    return cells, delimiter


def delimiter_of(header: str) -> str:
    """Comma, tab or semicolon: the one that cuts the header into most names we know, then into most names."""

    def names(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader(io.StringIO(header), delimiter=delimiter), [])
        return sum(cell.strip().lower() in KNOWN for cell in cells), len(cells)

    return max(",\t;", key=names)


def _reject(records: CsvRecords, feed: _Feed, detail: str) -> None:
    number, line = feed.taken[0]
    records.bad.append(BadLine(number, Reason.MALFORMED, detail, raw_text(line)))


def _stray(feed: _Feed, error: csv.Error | _TooLong) -> BadLine:
    """Reject the first line of a record that does not end as one, and read on after it."""
    number, line = feed.taken[0]
    feed.give_back(1)
    if isinstance(error, _TooLong):
        why = f"the record is longer than {MAX_LINE_BYTES:,} bytes; is a quote left open?"
    else:
        why = f"not CSV: {error}; is a quote left open?"
    return BadLine(number, Reason.MALFORMED, why, raw_text(line))


def _reject_count(feed: _Feed, records: CsvRecords, found: int, wanted: int, delimiter: str) -> None:
    """Reject a record of the wrong number of cells; a line in it that is a whole record was hidden by a stray quote."""
    _reject(records, feed, f"{found} cells, the header has {wanted}")
    for position, (_, line) in enumerate(feed.taken[1:], 1):
        if line.count(b'"') % 2:
            continue
        try:
            cells = next(csv.reader([line.decode("utf-8", "replace")], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if len(cells) == wanted:
            feed.give_back(position)
            return

"""Records of a CSV or TSV manifest with a header, delimited by comma, tab or semicolon, or as in a first line `sep=|`.

Cells have no types: a pass-through column is text as written (`007`; an empty cell is an empty string), and an empty
cell of a known column is absent. The line number of a record is that of its first line.

Comma and semicolon follow RFC 4180: quoted cells may contain newlines. A record that does not parse, or that contains a
line which is a row by itself (`pipeline.manifest.quotes`), has a stray quote. Its first line is rejected and reading
continues with the next line, so an unclosed quote costs one line and not the file.

In tab-separated files most quotes are plain characters, since most such files are written without quoting (Common
Voice, for example). There a cell is unquoted only if its quotes close on its line, or over several lines none of which
has the header's number of cells; all other quotes are text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.manifest.fields import KNOWN
from pipeline.manifest.quotes import RowTest, plain_cells, split_line
from pipeline.manifest.records import CHUNK_BYTES, BadName, Names, RejectedLine, malformed, raw_text
from pipeline.manifest.source import MAX_LINE_BYTES, OverLong, lines_of

_DECLARED = re.compile('"?sep=([,;|\t])"?', re.IGNORECASE)
"""First line in which Excel declares the delimiter."""


class CsvRecords:
    """Some rows of a CSV manifest."""

    from_csv = True

    def __init__(self, header: Sequence[str]) -> None:
        self.lines: list[int] = []
        self.rejects: list[RejectedLine] = []
        self.names: dict[str, None] = dict.fromkeys(header)
        self.rows: list[list[str]] = []
        self.texts: list[bytes] = []
        self._position = {name: position for position, name in enumerate(header)}

    def raw(self, position: int) -> str:
        """Return the first line of a row."""
        return raw_text(self.texts[position])

    def values(self, name: str) -> list[object]:
        """Return one column, as text."""
        column = self._position[name]
        return [row[column] for row in self.rows]

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """Return one pass-through column of the kept rows, as text."""
        column = self._position[name]
        rows = self.rows if kept is None else [self.rows[position] for position in kept]
        return pa.array([row[column] for row in rows], pa.string())


class _Feed:
    """Physical lines for `csv.reader`, kept for the current record so that they can be read again.

    Raises `_TooLong` when a record exceeds `MAX_LINE_BYTES`. Bytes that are not UTF-8 become surrogates, which are
    neither quotes nor delimiters.
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
        """Discard the lines of the previous record."""
        self.taken.clear()
        self.size, self.clean = 0, True

    def give_back(self, kept: int) -> None:
        """Return the record's lines after the first `kept` to the feed, to be read again."""
        self._again += reversed(self.taken[kept:])
        del self.taken[kept:]


class _TooLong(Exception):
    """A record that does not end within `MAX_LINE_BYTES`."""


def read_csv(blocks: Iterator[bytes], chunk_rows: int, display_uri: str) -> Iterator[CsvRecords]:
    """Yield records of a CSV stream, at most `chunk_rows` records and about `CHUNK_BYTES` at a time.

    Raises: ConfigError for an invalid header.
    """
    # a setting of the whole process; the default of 128 KiB would refuse texts of 1 MB
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    feed = _Feed(blocks)
    header, delimiter = _header(feed, display_uri)
    next_cells = _tab_cells(feed, len(header)) if delimiter == "\t" else _comma_cells(feed, header, delimiter)
    records, size = CsvRecords(header), 0
    while True:
        feed.start_record()
        try:
            cells = next_cells()
        except StopIteration:
            break
        except (csv.Error, _TooLong) as error:
            records.rejects.append(_stray(feed, error))
        else:
            if not feed.taken[0][1].strip() and len(cells) <= 1:
                continue  # a blank line; `""` is a record of one empty cell
            if len(cells) != len(header):
                _reject(records, feed, _wrong_count(feed, len(cells), len(header)))
            elif not feed.clean:
                _reject(records, feed, "not UTF-8: the record contains bytes of another encoding")
            else:
                records.lines.append(feed.taken[0][0])
                records.rows.append(cells)
                records.texts.append(feed.taken[0][1])
        size += feed.size
        if size >= CHUNK_BYTES or len(records.lines) + len(records.rejects) >= chunk_rows:
            yield records
            records, size = CsvRecords(header), 0
    yield records  # also when empty, since the header alone shows whether the file is a manifest


NextCells = Callable[[], list[str]]
"""Function that reads one record. Raises: StopIteration at the end; csv.Error or _TooLong to reject the first line."""


def _comma_cells(feed: _Feed, header: Sequence[str], delimiter: str) -> NextCells:
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    rows = RowTest(header, delimiter)

    def cells() -> list[str]:
        cells = next(reader)
        lines = [line.decode("utf-8", "surrogateescape") for _, line in feed.taken]
        if len(lines) > 1 and rows.hidden(lines, cells):
            raise csv.Error(f"a quote would swallow the rows up to line {feed.taken[-1][0]}")
        return cells

    return cells


def _tab_cells(feed: _Feed, width: int) -> NextCells:
    def cells() -> list[str]:
        line = next(feed)
        quoted, plain = split_line(line, "\t"), plain_cells(line, "\t")
        if quoted is not None and (len(quoted) == width or len(plain) != width):
            return quoted
        if '"' not in line or any("\r" in cell for cell in plain):
            return next(csv.reader([line], delimiter="\t", strict=True))  # raises the reason
        clean = feed.clean
        over_lines = _over_lines(feed, line, width)
        if over_lines is not None:
            return over_lines
        feed.give_back(1)
        feed.size, feed.clean = len(line), clean
        return plain

    return cells


def _over_lines(feed: _Feed, line: str, width: int) -> list[str] | None:
    """Return the cells of a record whose quotes close on a later line; None if a line in between is a record itself.

    If the first line is not a record by itself, the last line, in which the quotes close, may have the header's number
    of cells.
    """
    text, first_is_row = line, len(plain_cells(line, "\t")) == width
    while text.count('"') % 2:
        try:
            more = next(feed)
        except (StopIteration, _TooLong):
            return None
        text += more
        if len(plain_cells(more, "\t")) == width and (first_is_row or text.count('"') % 2):
            return None
    cells = None if text is line else split_line(text, "	")
    return cells if cells is not None and len(cells) == width else None


def _header(feed: _Feed, display_uri: str) -> tuple[list[str], str]:
    try:
        first = next(feed)
        while not first.strip():
            first = next(feed)
        declared = _DECLARED.fullmatch(first.strip("\ufeff \r\n"))
        if declared:
            first = next(feed, "")
    except _TooLong:
        raise ConfigError(f"manifest {display_uri}: its header is longer than {MAX_LINE_BYTES:,} bytes") from None
    try:
        delimiter = declared[1] if declared else delimiter_of(first)
        cells = [name.strip() for name in next(csv.reader([first], delimiter=delimiter, strict=True))]
        if not feed.clean:
            raise BadName("it is not UTF-8")
        Names().add(cells)
    except csv.Error as error:
        raise ConfigError(f"manifest {display_uri}: its header is not CSV: {error}") from None
    except BadName as error:
        raise ConfigError(f"manifest {display_uri}: its header cannot be read: {error}") from None
    return cells, delimiter


def delimiter_of(header: str) -> str:
    """Return the one of comma, tab and semicolon that splits the header into most known names, then most names."""

    def names(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader(io.StringIO(header), delimiter=delimiter), [])
        return sum(cell.strip().lower() in KNOWN for cell in cells), len(cells)

    return max(",\t;", key=names)


def _reject(records: CsvRecords, feed: _Feed, detail: str) -> None:
    number, line = feed.taken[0]
    records.rejects.append(RejectedLine(number, malformed(detail), raw_text(line)))


def _stray(feed: _Feed, error: csv.Error | _TooLong) -> RejectedLine:
    """Reject the first line of a record that does not parse, and return its other lines to the feed."""
    number, line = feed.taken[0]
    feed.give_back(1)
    if isinstance(error, _TooLong):
        why = f"the record is longer than {MAX_LINE_BYTES:,} bytes; is a quote left open?"
    else:
        why = f"not CSV: {error}; is a quote left open?"
    return RejectedLine(number, malformed(why), raw_text(line))


def _wrong_count(feed: _Feed, found: int, wanted: int) -> str:
    lines = f"; the record spans the lines to {feed.taken[-1][0]}" if len(feed.taken) > 1 else ""
    return f"{found} cells, but the header has {wanted}{lines}"

"""Distinguish multi-line CSV cells from stray quotes that hide the lines after them.

A quote that opens a cell and is not closed on its line may start a multi-line cell (RFC 4180), or be part of the text,
such as direct speech in a file written without quoting. If such a character is read as an opening quote, the lines up
to the next quote disappear into one cell. A line inside that is a whole record by itself is evidence of a stray quote.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from pipeline.manifest.fields import ALIASES

_ENDING = re.compile(r"\.\w{1,5}$")


def split_line(line: str, delimiter: str) -> list[str] | None:
    """Split one line into cells; return None if its quotes do not close on it or do not quote cells."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return None


def plain_cells(line: str, delimiter: str) -> list[str]:
    """Split one line into cells, with quotes as ordinary characters."""
    return line.rstrip("\r\n").split(delimiter)


class RowTest:
    """Test whether a line, read by itself, is a row of the manifest with this header."""

    def __init__(self, header: Sequence[str], delimiter: str) -> None:
        self._width, self._delimiter = len(header), delimiter
        lower = [name.lower() for name in header]
        keys = [lower.index(name) for name in (*ALIASES["audio"], *ALIASES["id"]) if name in lower]
        self._key = keys[0] if keys else None

    def hidden(self, lines: Sequence[str], record: Sequence[str]) -> bool:
        """Return whether the lines of a record after the first include a row, hidden by a quote in the first.

        Such a line must have the right number of cells, and its audio (or id) must look like that of the first line,
        since a sentence in a transcript may contain any number of commas. If the audio is a path, the line may also
        have more cells: it is then a row whose text has unquoted delimiters. If `record` has the right number of cells,
        the first line must have as many by itself; otherwise the lines belong together.
        """
        own = self._as_text(lines[0])
        right_count, key = len(record) == self._width, self._key
        if right_count and (len(own) < self._width or (key is not None and not _alike(record[key], own[key]))):
            return False
        return any(self._is_row(line, own) for line in lines[1:])

    def _as_text(self, line: str) -> list[str]:
        """Split a line whose last quote opens a cell and does not close, with that quote as text."""
        cells = split_line(line.rstrip("\r\n") + '"', self._delimiter)
        if not cells:
            return plain_cells(line, self._delimiter)
        return [*cells[:-1], *cells[-1].split(self._delimiter)]

    def _is_row(self, line: str, own: Sequence[str]) -> bool:
        for cells in (split_line(line, self._delimiter), plain_cells(line, self._delimiter)):
            if cells is None or not any(cells):
                continue
            if self._key is None:
                if len(cells) == self._width:
                    return self._width > 1
                continue
            key = own[self._key] if self._key < len(own) else ""
            enough = len(cells) >= self._width if _is_path(key) else len(cells) == self._width
            if enough and _alike(key, cells[self._key]):
                return True
        return False


def _is_path(cell: str) -> bool:
    """Return whether a cell is a path or file name, which text hardly contains at the same place in a line."""
    return "/" in cell or _ENDING.search(cell.strip().strip('"').partition("?")[0]) is not None


def _alike(own: str, other: str) -> bool:
    """Return whether two cells look like values of the same column of file names or ids."""
    own, other = own.strip().strip('"'), other.strip().strip('"')
    if not other or not own:
        return bool(other)
    endings = [_ENDING.search(cell.partition("?")[0]) is not None for cell in (own, other)]
    if any(endings):
        return all(endings)
    if "/" in own + other:
        return "/" in own and "/" in other
    return (" " in own or " " not in other) and (not re.search(r"\d", own) or re.search(r"\d", other) is not None)

"""Fixed-width tables for a terminal. Widths are in cells, not characters; control characters in texts are removed."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_EIGHTHS = " ▏▎▍▌▋▊▉"
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        least: minimum width in cells on a narrow terminal; None for a column that is never cut.
        wrap: continue long values on the next line instead of cutting them.
    """

    title: str
    least: int | None = None
    wrap: bool = False


def cells(text: str) -> int:
    """Return the width of a text in terminal cells: two for a wide character, none for a combining or format one."""
    return sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def clean(text: str) -> str:
    """Return a text as one line without control and direction characters, which could clear the screen or forge a row."""
    kept = (c for c in text if unicodedata.category(c) != "Cf")
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in kept).strip()


def cut(text: str, width: int) -> str:
    """Cut a text to at most `width` cells; … marks the cut."""
    if cells(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += _cells_of(character)
        if used > width - 1:
            break
        kept += character
    return kept.rstrip() + "…" if width > 0 else ""


def fill(text: str, width: int) -> str:
    """Pad with blanks to `width` cells."""
    return text + " " * (width - cells(text))


def bar(value: float, width: int) -> str:
    """Return a bar of `width` cells for a value from 0 to 1, to an eighth of a cell."""
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return fill("█" * full + (_EIGHTHS[rest] if rest else ""), width)


def render(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table, at most `width` cells wide unless the columns' least widths exceed it."""
    body = [list(map(clean, row)) for row in rows]
    widths = _widths(columns, body, width)
    lines = [_line([column.title for column in columns], widths), _line(["─" * each for each in widths], widths)]
    for row in body:
        blocks = [_block(column, value, each) for column, value, each in zip(columns, row, widths, strict=True)]
        for index in range(max(map(len, blocks))):
            lines.append(_line([block[index] if index < len(block) else "" for block in blocks], widths))
    return lines


def _widths(columns: Sequence[Column], body: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the widths of the columns: their full widths, reduced cell by cell, the widest first."""
    wanted = [max([cells(column.title), *(cells(row[index]) for row in body)]) for index, column in enumerate(columns)]
    spare = width - len(_GAP) * (len(columns) - 1)
    while sum(wanted) > spare:
        giving = [i for i, column in enumerate(columns) if column.least is not None and wanted[i] > column.least]
        if not giving:
            break
        wanted[max(giving, key=lambda i: wanted[i])] -= 1
    return wanted


def _block(column: Column, value: str, width: int) -> list[str]:
    if column.wrap and cells(value) > width:
        return [cut(line, width) for line in textwrap.wrap(value, width)]
    return [cut(value, width)]


def _line(values: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(fill(cut(value, each), each) for value, each in zip(values, widths, strict=True)).rstrip()

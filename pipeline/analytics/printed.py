"""Tables as lines of text, with every row and every column: DuckDB's own `show` leaves out what does not fit."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import pyarrow as pa

from pipeline.dataset.verify.promises import printable

_GAP = "  "


def terminal_width(out: TextIO | None = None) -> int | None:
    """Characters in a line of the terminal that `out` (default: standard output) writes to; None for a file or pipe."""
    return shutil.get_terminal_size().columns if (out or sys.stdout).isatty() else None


def table_lines(table: pa.Table, *, width: int | None = None, keys: int = 1) -> Iterator[str]:
    """Yield the header and the rows of a table.

    Args:
        width: of a terminal. A wider table is printed as several blocks one below the other, and a longer cell is cut. None
            for one block of whole cells.
        keys: how many columns, from the left, each block begins with.
    """
    columns = [_cells(table.field(number), table.column(number), width) for number in range(table.num_columns)]
    for number, block in enumerate(_blocks([len(cells[0]) for cells in columns], width, keys)):
        if number:
            yield ""
        for row in range(table.num_rows + 1):
            yield _GAP.join(columns[column][row] for column in block).rstrip()


def _cells(field: pa.Field, column: pa.ChunkedArray, width: int | None) -> list[str]:
    """The header and the values of a column, padded to one width; numbers to the right."""
    texts = [printable(field.name), *(_text(value) for value in column.to_pylist())]
    if width is not None:
        texts = [text if len(text) <= width else f"{text[: max(width - 1, 0)]}…" for text in texts]
    longest = max(map(len, texts))
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
    return [text.rjust(longest) if is_number else text.ljust(longest) for text in texts]


def _text(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return printable(str(value))


def _blocks(widths: Sequence[int], width: int | None, keys: int) -> Iterator[list[int]]:
    """Which columns are printed side by side."""
    key_columns = list(range(min(keys, len(widths))))
    block = list(key_columns)
    for column in range(len(key_columns), len(widths)):
        together = sum(widths[each] + len(_GAP) for each in block) + widths[column]
        if width is not None and together > width and len(block) > len(key_columns):
            yield block
            block = list(key_columns)
        block.append(column)
    yield block

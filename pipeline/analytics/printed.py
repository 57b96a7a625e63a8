"""Tables as lines of text, with all rows and columns; DuckDB's `show` omits those that do not fit."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import pyarrow as pa

from pipeline.dataset.verify.invariants import printable
from pipeline.manifest.python_values import plain_rows, plain_values

_GAP = "  "


def terminal_width(out: TextIO | None = None) -> int | None:
    """Return the width of the terminal of `out` (default: standard output), or None for a file or pipe."""
    return shutil.get_terminal_size().columns if (out or sys.stdout).isatty() else None


def table_lines(table: pa.Table, *, width: int | None = None, keys: int = 1) -> Iterator[str]:
    """Yield the header and the rows of a table.

    Args:
        width: width of the terminal. A wider table is split into blocks, one below the other, and longer cells are cut.
            None for one block of uncut cells.
        keys: number of leading columns that each block repeats.
    """
    columns = [_cells(table.field(number), table.column(number), width) for number in range(table.num_columns)]
    for number, block in enumerate(_blocks([len(cells[0]) for cells in columns], width, keys)):
        if number:
            yield ""
        for row in range(table.num_rows + 1):
            yield _GAP.join(columns[column][row] for column in block).rstrip()


def json_rows(table: pa.Table) -> list[dict[str, object]]:
    """Return the rows of a table for JSON, with maps as objects."""
    kinds = {field.name: field.type for field in table.schema}
    return [{name: _for_json(value, kinds[name]) for name, value in row.items()} for row in plain_rows(table)]


def _for_json(value: object, kind: pa.DataType) -> object:
    """Return a value with maps as objects, also inside structs."""
    if pa.types.is_map(kind) and isinstance(value, list):
        return dict(value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _for_json(value[field.name], field.type) for field in kind}
    return value


def _cells(field: pa.Field, column: pa.ChunkedArray, width: int | None) -> list[str]:
    """Return the header and the values of a column, padded to one width; numbers are right-aligned."""
    text_of = _pairs if pa.types.is_map(field.type) else _text
    texts = [printable(field.name), *(text_of(value) for value in plain_values(column))]
    if width is not None:
        texts = [text if len(text) <= width else f"{text[: max(width - 1, 0)]}…" for text in texts]
    longest = max(map(len, texts))
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
    return [text.rjust(longest) if is_number else text.ljust(longest) for text in texts]


def _pairs(value: object) -> str:
    """Return the entries of a map, such as the scores of labels, as `sad 0.25, happy 0.75`."""
    if not isinstance(value, list):
        return _text(value)
    return ", ".join(f"{printable(str(key))} {_rounded(item)}" for key, item in value)


def _rounded(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


def _text(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return printable(", ".join(value))
    return printable(str(value))


def _blocks(widths: Sequence[int], width: int | None, keys: int) -> Iterator[list[int]]:
    """Yield the columns of each block."""
    key_columns = list(range(min(keys, len(widths))))
    block = list(key_columns)
    for column in range(len(key_columns), len(widths)):
        together = sum(widths[each] + len(_GAP) for each in block) + widths[column]
        if width is not None and together > width and len(block) > len(key_columns):
            yield block
            block = list(key_columns)
        block.append(column)
    yield block

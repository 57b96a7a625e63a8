"""Records of a JSON Lines manifest: each line is one record or one rejection, independent of other lines.

Each line is one object (RFC 8259, no `NaN`, no repeated key). Blank lines are skipped and CRLF is allowed. `""` is an
empty text; null is an absent value. Costs about 5 microseconds per line on one core, most of it in the C parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import pyarrow as pa

from pipeline.manifest.columns import array_of
from pipeline.manifest.records import (
    CHUNK_BYTES,
    RAW_CHARACTERS,
    BadName,
    Names,
    RejectedLine,
    bad_field,
    malformed,
    raw_text,
)
from pipeline.manifest.source import MAX_LINE_BYTES, OverLong, lines_of

_MAX_DEPTH = 32  # of nested lists and objects; Parquet readers fail at depths not much greater


class JsonRecords:
    """Some rows of a JSON Lines manifest."""

    from_csv = False

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.rejects: list[RejectedLine] = []
        self.names: dict[str, None] = {}
        self.rows: list[dict[str, object]] = []
        self.texts: list[str] = []

    def raw(self, position: int) -> str:
        """Return the line of a row."""
        return self.texts[position][:RAW_CHARACTERS]

    def values(self, name: str) -> list[object]:
        """Return one column, None where a row lacks it."""
        return [row.get(name) for row in self.rows]

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """Return one pass-through column of the kept rows."""
        rows = self.rows if kept is None else [self.rows[position] for position in kept]
        return array_of([row.get(name) for row in rows])


class _BadJson(ValueError):
    """JSON that is refused; the message gives the reason."""


def read_jsonl(blocks: Iterator[bytes], chunk_rows: int) -> Iterator[JsonRecords]:
    """Yield records of a JSON Lines stream, at most `chunk_rows` lines and about `CHUNK_BYTES` at a time."""
    return records_of_lines(lines_of(blocks), chunk_rows, Names())


def records_of_lines(lines: Iterable[tuple[int, list[bytes]]], chunk_rows: int, names: Names) -> Iterator[JsonRecords]:
    """Yield records of numbered lines, as `lines_of` returns them, in the same chunks as `read_jsonl`.

    Args:
        names: the columns of the lines before these; the columns of these are added.
    """
    records, size = JsonRecords(), 0
    for first, some in lines:
        for number, line in enumerate(some, first):
            stripped = line.strip(b" \t\r")
            if not stripped:
                continue
            try:
                row, text = json_row(stripped, over_long=type(line) is OverLong)
                if not row.keys() <= records.names.keys():
                    row = by_column(row, records, names)
            except BadName as error:
                records.rejects.append(RejectedLine(number, bad_field(str(error)), raw_text(line)))
            except (ValueError, RecursionError, StopIteration) as error:
                records.rejects.append(RejectedLine(number, malformed(why_bad(error)), raw_text(line)))
            else:
                records.lines.append(number)
                records.rows.append(row)
                records.texts.append(text)
            size += len(line)
            if size >= CHUNK_BYTES or len(records.lines) + len(records.rejects) >= chunk_rows:
                yield records
                records, size = JsonRecords(), 0
    if records.lines or records.rejects:
        yield records


def by_column(row: dict[str, object], records: JsonRecords, names: Names) -> dict[str, object]:
    """Return the row with its keys replaced by column names, and record those names. Raises: BadName."""
    columns = names.add(list(row))
    records.names.update(dict.fromkeys(columns))
    return dict(zip(columns, row.values(), strict=True))


def json_row(line: bytes, *, over_long: bool = False) -> tuple[dict[str, object], str]:
    """Return one line's object, and the line as text.

    Raises: ValueError (or StopIteration, RecursionError from the C scanner) when the line is not one JSON object.
    """
    if over_long:
        raise _BadJson(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    text = line.decode()
    if text[0] != "{":
        raise _BadJson("a byte-order mark inside the file" if text[0] == "\ufeff" else "not a JSON object")
    row, end = _scan(text, 0)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(row)
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(row) > _MAX_DEPTH:
        raise _BadJson(f"nested deeper than {_MAX_DEPTH} levels")
    return row, text


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadJson(f"key {twice[:80]!r} appears twice")
    return row


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0:
        raise _BadJson(f"{digits[:40]} does not fit a float64")
    return number


def _no_constant(name: str) -> NoReturn:
    raise _BadJson(f"{name} is not JSON; write null")


_scan = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant).scan_once  # type: ignore[attr-defined]


def _refuse_lone_surrogates(row: dict[str, object]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _BadJson("an unpaired surrogate (\\ud800 to \\udfff), which is not valid text") from None


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return deepest - 1


def why_bad(error: ValueError | RecursionError | StopIteration) -> str:
    """Return the reason for a message; `UnicodeDecodeError` and `JSONDecodeError` would quote the whole line."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line"
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, StopIteration):
        return f"not JSON: Expecting value at character {error.value + 1}"
    if isinstance(error, _BadJson):
        return str(error)
    return "a whole number of more than 4,300 digits"  # CPython's only own ValueError here: int() of a long string

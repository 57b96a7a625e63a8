"""Python values of Arrow columns, even where Python lacks them: its years end at 9999, and it knows few time zones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa

_NAN = float("nan")
_LISTS = (pa.types.is_list, pa.types.is_large_list)


def plain_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Return the values of a column; if one of them has no Python value, times are returned as Arrow's integers."""
    try:
        values: list[object] = column.to_pylist()
    except (OverflowError, ValueError):
        values = column.cast(_counted(column.type)).to_pylist()
    return values


def plain_rows(table: pa.Table) -> list[dict[str, object]]:
    """Return the rows of a table, with values as in `plain_values`."""
    values = zip(*map(plain_values, table.columns), strict=True)
    return [dict(zip(table.schema.names, row, strict=True)) for row in values]


def plain_row(table: pa.Table, row: int) -> dict[str, object]:
    """Return one row of a table, with values as in `plain_values`."""
    return {name: plain_values(table[name].slice(row, 1))[0] for name in table.schema.names}


def _counted(kind: pa.DataType) -> pa.DataType:
    """Return the type with integers in place of times, at any depth."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_counted(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_counted(kind.key_type), _counted(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_counted(kind.value_type), kind.list_size)
    if any(is_one(kind) for is_one in _LISTS):
        return pa.list_(_counted(kind.value_type))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def groups(rows: pa.Table, names: tuple[str, ...]) -> Iterator[tuple[tuple[object, ...], pa.Table]]:
    """Split rows by the values of `names`, keeping their order inside a group."""
    # NaN is not equal to itself, so one NaN replaces all others
    keys = [
        tuple(_NAN if isinstance(value, float) and math.isnan(value) else value for value in values)
        for values in zip(*(plain_values(rows[name]) for name in names), strict=True)
    ]
    positions: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        positions[key].append(position)
    if len(positions) == 1:
        yield keys[0], rows
        return
    for key, taken in positions.items():
        yield key, rows.take(pa.array(taken))

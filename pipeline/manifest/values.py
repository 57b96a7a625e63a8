"""Exact conversion of single values to another type.

30 and 30.0 fit int64 and float64; 30.5 fits only float64, and 0.1 does not fit float32. Text accepts any value except
bytes, as JSON, but no other type accepts text, so "007" never becomes 7. A timestamp keeps its zone, a boolean is not a
number, and an object fits a struct that has all its keys in any case.

CSV cells have no types. They fit a number or boolean type if written like one; an empty cell is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal, DecimalException, localcontext
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.manifest.columns import is_list_like, text_of

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_S = 86_400
_UTC = ("UTC", "Etc/UTC", "+00:00", "Z", "GMT")
T = TypeVar("T")


class NoFitError(Exception):
    """A value that the type cannot hold exactly."""


Holder = Callable[[object], object]
"""Function that converts a value for `pa.array` with its type. Raises: NoFitError."""


def holder(target: pa.DataType, source: pa.DataType | None = None) -> Holder:  # noqa: PLR0911 - one line per kind
    """Return the conversion to `target` of JSON values, or of an Arrow type's, with times as counts of their unit."""
    if pa.types.is_struct(target):
        return _struct_holder(target, source)
    if is_list_like(target) or pa.types.is_fixed_size_list(target):
        return _list_holder(target, source)
    if pa.types.is_map(target):
        return _map_holder(target, source)
    if source is not None and pa.types.is_temporal(source) and not pa.types.is_string(target):
        return _moment_holder(target, source)
    if source is not None and source == target:
        return lambda value: value
    if pa.types.is_string(target):
        return _hold_text
    if pa.types.is_integer(target) or pa.types.is_floating(target) or pa.types.is_decimal(target):
        return lambda value: _number(value, target)
    if pa.types.is_boolean(target):
        return lambda value: _of_type(value, bool)
    if is_bytes(target):
        width = target.byte_width if pa.types.is_fixed_size_binary(target) else None
        return lambda value: _bytes(value, width)
    return _never


def _struct_holder(target: pa.DataType, source: pa.DataType | None) -> Holder:
    theirs = {field.name: field.type for field in source} if source is not None and pa.types.is_struct(source) else {}
    if source is not None and not theirs:
        return _never
    spelling = {field.name.lower(): field for field in target} | {field.name: field for field in target}
    holders: dict[str, tuple[str, Holder]] = {}

    def of(key: str) -> tuple[str, Holder]:
        field = spelling.get(key) or spelling.get(key.lower())
        if field is None:
            raise NoFitError
        return field.name, holder(field.type, theirs.get(key))

    def hold(value: object) -> object:
        held: dict[str, object] = {}
        for key, item in _of_type(value, dict).items():
            if item is None:
                continue  # a struct does not distinguish null from absent
            if key not in holders:
                holders[key] = of(key)
            name, holds = holders[key]
            if name in held:
                raise NoFitError
            held[name] = holds(item)
        return held

    return hold


def _list_holder(target: pa.DataType, source: pa.DataType | None) -> Holder:
    if source is not None and not (is_list_like(source) or pa.types.is_fixed_size_list(source)):
        return _never
    holds = holder(target.value_type, None if source is None else source.value_type)
    size = target.list_size if pa.types.is_fixed_size_list(target) else None

    def hold(value: object) -> object:
        items = _of_type(value, list)
        if size is not None and len(items) != size:
            raise NoFitError
        return [None if item is None else holds(item) for item in items]

    return hold


def _map_holder(target: pa.DataType, source: pa.DataType | None) -> Holder:
    if source is None or not pa.types.is_map(source):
        return _never
    holds_key, holds_item = holder(target.key_type, source.key_type), holder(target.item_type, source.item_type)

    def hold(value: object) -> object:
        return [(holds_key(key), None if item is None else holds_item(item)) for key, item in _of_type(value, list)]

    return hold


def _moment_holder(target: pa.DataType, source: pa.DataType) -> Holder:
    """Return the conversion of dates, timestamps, times and durations to other units; a date is its first midnight."""
    ours, theirs = _per_second(source), _per_second(target)
    same = [
        is_one
        for is_one in (pa.types.is_date, pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration)
        if is_one(source) and is_one(target)
    ]
    midnight = pa.types.is_date(source) and pa.types.is_timestamp(target) and target.tz is None
    zones = pa.types.is_timestamp(source) and pa.types.is_timestamp(target) and not same_zone(source.tz, target.tz)
    if ours is None or theirs is None or not (same or midnight) or zones:
        return _never
    bits = target.bit_width - 1

    def hold(value: object) -> object:
        count, rest = divmod(_of_type(value, int) * theirs[0] * ours[1], ours[0] * theirs[1])
        if rest or not -(2**bits) <= count < 2**bits:
            raise NoFitError
        return count

    return hold


def _per_second(kind: pa.DataType) -> tuple[int, int] | None:
    """Return the number of units per second, as a fraction."""
    if pa.types.is_date32(kind):
        return 1, _DAY_S
    if pa.types.is_date64(kind):
        return 1000, 1
    unit = getattr(kind, "unit", None)
    return (_PER_SECOND[unit], 1) if unit in _PER_SECOND else None


def same_zone(one: str | None, other: str | None) -> bool:
    """Return whether two time zones are equal, or both are names of UTC."""
    return one == other or (one in _UTC and other in _UTC)


def _hold_text(value: object) -> object:
    if isinstance(value, bytes):
        raise NoFitError
    return text_of(value)


def _number(value: object, target: pa.DataType) -> object:
    """Convert a number. Raises: NoFitError when the type would round it, or the value is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise NoFitError
    if isinstance(value, float) and not math.isfinite(value):
        if pa.types.is_floating(target):
            return value
        raise NoFitError
    if pa.types.is_integer(target):
        bounds = np.iinfo(str(target))
        if value != int(value) or not bounds.min <= value <= bounds.max:
            raise NoFitError
        return int(value)
    if pa.types.is_floating(target):
        return _rounded_to_itself(value, np.dtype(target.to_pandas_dtype()))
    with localcontext(prec=100) as context:
        exact = Decimal(value)
        try:
            scaled = exact.quantize(Decimal(1).scaleb(-target.scale), context=context)
        except DecimalException:
            raise NoFitError from None
        if scaled != exact or len(scaled.as_tuple().digits) > target.precision:
            raise NoFitError
        return scaled


def _rounded_to_itself(value: float | Decimal, dtype: np.dtype[np.generic]) -> float:
    try:
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(float(value)))
    except OverflowError:
        raise NoFitError from None
    if rounded != value:
        raise NoFitError
    return rounded


def _bytes(value: object, width: int | None) -> bytes:
    content = _of_type(value, bytes)
    if width is not None and len(content) != width:
        raise NoFitError
    return content


def _of_type(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise NoFitError
    return value


def _never(value: object) -> object:
    raise NoFitError


def cell_holder(target: pa.DataType) -> Holder:
    """Return the conversion of CSV cells: numbers as in JSON, true or false in any case; an empty cell is null."""
    number = pa.types.is_integer(target) or pa.types.is_floating(target) or pa.types.is_decimal(target)

    def hold(value: object) -> object:
        cell = str(value)
        if not cell:
            return None
        if pa.types.is_boolean(target) and cell.lower() in ("true", "false"):
            return cell.lower() == "true"
        try:
            read = json.loads(cell, parse_int=Decimal, parse_float=Decimal, parse_constant=_never)
        except (ValueError, RecursionError):
            raise NoFitError from None
        if not (number and isinstance(read, Decimal)):
            raise NoFitError
        if pa.types.is_floating(target) and Decimal(repr(float(read))) == read:
            return _number(float(read), target)  # the cell has the shortest digits that identify this float64
        return _number(read, target)

    return hold


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes rather than text."""
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))

"""Conversion of a chunk's columns to given types, with a report of the values that do not fit unchanged.

`pipeline.manifest.values` decides which values fit. A type is never changed for a value that does not fit; the row is
rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.manifest.columns import MIXED, UNTYPED, documents, is_list_like, json_of, json_text, to_python
from pipeline.manifest.values import Holder, NoFitError, cell_holder, holder, is_bytes, same_zone
from pipeline.redaction import without_query

_SHOWN = 120
_PYTHON_KINDS = {str: "text", bool: "boolean", int: "whole number", float: "number", dict: "object", list: "list"}


@dataclass(frozen=True, slots=True)
class Misfit:
    """A value that its column's type cannot hold.

    Attributes:
        value: the whole value.
        sentence: message that names the column, the value and both types.
    """

    column: str
    value: object
    sentence: str


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert a chunk to a schema that `unify` made from it and others: absent columns are null, casts are exact.

    Raises: ConfigError when the schema lacks a column of the chunk, or a type cannot hold a value exactly.
    """
    fitted, misfits = fit(table, schema)
    if misfits:
        raise ConfigError(next(iter(misfits.values()))[0].sentence)
    return fitted


def fit(table: pa.Table, schema: pa.Schema) -> tuple[pa.Table, dict[int, list[Misfit]]]:
    """Convert a chunk to a schema; absent columns and values that do not fit become null.

    Returns: the chunk, and the values that do not fit, by row.
    Raises: ConfigError for a column that the schema lacks.
    """
    spelling = {name.lower(): name for name in schema.names}
    table = table.rename_columns([spelling.get(name.lower(), name) for name in table.column_names])
    lost = sorted(set(table.column_names) - set(schema.names))
    if lost:
        raise ConfigError(f"columns {', '.join(map(repr, lost))} are not in the schema to conform to")
    columns: list[pa.Array | pa.ChunkedArray] = []
    misfits: dict[int, list[Misfit]] = {}
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column, bad = _fit_column(table[field.name], table.schema.field(field.name), field)
        columns.append(column)
        for row, misfit in bad.items():
            misfits.setdefault(row, []).append(misfit)
    return pa.Table.from_arrays(columns, schema=schema), misfits


def _fit_column(
    column: pa.ChunkedArray, source: pa.Field, target: pa.Field
) -> tuple[pa.Array | pa.ChunkedArray, dict[int, Misfit]]:
    kind = target.type
    marks, mixed = (source.metadata or {}).items(), MIXED.items() <= (target.metadata or {}).items()
    if MIXED.items() <= marks:
        return _by_value(column, documents(column), holder(kind), target, None)
    if column.type == kind:
        return column, {}
    if column.null_count == len(column):
        return pa.nulls(len(column), kind), {}
    if pa.types.is_string(kind) and (mixed or not is_bytes(column.type)):
        return json_text(column), {}
    quick = _cast_at_once(column, kind)
    if quick is not None:
        return quick, {}
    holds = cell_holder(kind) if UNTYPED.items() <= marks else holder(kind, column.type)
    bridge = _bridge(column.type, kind)
    values = column if column.type == bridge else column.cast(bridge)
    return _by_value(column, values.to_pylist(), holds, target, column.type)


def _by_value(
    column: pa.ChunkedArray, values: list[object], holds: Holder, target: pa.Field, found: pa.DataType | None
) -> tuple[pa.Array, dict[int, Misfit]]:
    fitted: list[object] = []
    misfits: dict[int, Misfit] = {}
    for row, value in enumerate(values):
        try:
            fitted.append(None if value is None else holds(value))
        except NoFitError:
            fitted.append(None)
            original = value if found is None else to_python(column.slice(row, 1))[0]
            misfits[row] = _misfit(target, original, found)
    return pa.array(fitted, target.type), misfits


def _misfit(target: pa.Field, value: object, found: pa.DataType | None) -> Misfit:
    if isinstance(value, str) and "://" in value:
        value = without_query(value)
    kind = _PYTHON_KINDS[type(value)] if found is None else str(found)
    written, theirs, ours = (
        text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in (json_of(value), kind, str(target.type))
    )
    sentence = (
        f"column {target.name!r} holds {written} ({theirs}); its type in the output, {ours}, cannot hold that value"
    )
    return Misfit(target.name, value, sentence)


# ------------------------------------------------------------------------------------------------------ whole columns


def _cast_at_once(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return the cast column if one cast proves that every value fits; None if each value must be checked."""
    source = column.type
    whole, fractions = pa.types.is_integer, pa.types.is_floating
    safe = (
        (whole(source) and (whole(kind) or pa.types.is_float64(kind) or pa.types.is_float32(kind)))
        or (fractions(source) and whole(kind))
        or (fractions(source) and fractions(kind) and source.bit_width < kind.bit_width)
        or (pa.types.is_timestamp(source) and pa.types.is_timestamp(kind) and same_zone(source.tz, kind.tz))
        or _only_adds(source, kind)
    )
    try:
        return column.cast(kind) if safe else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _only_adds(source: pa.DataType, target: pa.DataType) -> bool:
    """Return whether `target` is the same type with additional struct fields, which become null."""
    if pa.types.is_struct(source) and pa.types.is_struct(target):
        target_types = {field.name: field.type for field in target}
        order = [name for name in target_types if source.get_field_index(name) >= 0]
        return order == [field.name for field in source] and all(
            _only_adds(field.type, target_types[field.name]) for field in source
        )
    if pa.types.is_list(source) and pa.types.is_list(target):
        return _only_adds(source.value_type, target.value_type)
    return bool(source == target or pa.types.is_null(source))


def _bridge(source: pa.DataType, target: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one line per kind
    """Return the type for converting a column to Python values.

    Times are counts of their unit, since nanoseconds have no Python value without pandas, or text if the target is
    text.
    """
    if pa.types.is_struct(source):
        target_types = {field.name.lower(): field.type for field in target} if pa.types.is_struct(target) else {}
        return pa.struct(
            [(field.name, _bridge(field.type, target_types.get(field.name.lower(), pa.null()))) for field in source]
        )
    inner = target.value_type if is_list_like(target) else pa.null()
    if pa.types.is_fixed_size_list(source):
        return pa.list_(_bridge(source.value_type, inner), source.list_size)
    if is_list_like(source):
        return pa.list_(_bridge(source.value_type, inner))
    if pa.types.is_map(source):
        parts = (target.key_type, target.item_type) if pa.types.is_map(target) else (pa.null(), pa.null())
        return pa.map_(_bridge(source.key_type, parts[0]), _bridge(source.item_type, parts[1]))
    if pa.types.is_temporal(source) and not pa.types.is_interval(source):
        if pa.types.is_string(target):
            return pa.string()
        return pa.int32() if source.bit_width == 32 else pa.int64()
    return pa.string() if pa.types.is_null(source) else source

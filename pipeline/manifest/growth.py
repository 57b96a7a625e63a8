"""How the type of a pass-through column may grow from run to run, and in which type readers ask for it."""

from __future__ import annotations

import pyarrow as pa

from pipeline.manifest.columns import MIXED

MAX_WIDENED_FIELDS = 1024
"""Keys of one struct over all plans. Rows with more are rejected: such an object is a map in disguise."""

_DECIMAL128_DIGITS = 38


def widened(kind: pa.DataType, found: pa.DataType) -> pa.DataType:
    """The type with the keys that `found` has beside its own, wherever both are structs; other types stay."""
    if pa.types.is_null(kind):
        return found
    if pa.types.is_struct(kind) and pa.types.is_struct(found):
        fields = {field.name.lower(): field for field in kind}
        for field in found:
            known = fields.get(field.name.lower())
            if known is not None:
                fields[field.name.lower()] = known.with_type(widened(known.type, field.type))
            elif len(fields) < MAX_WIDENED_FIELDS:
                fields[field.name.lower()] = field.with_nullable(True)
        return pa.struct(list(fields.values()))
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(found):
        return pa.list_(widened(kind.value_type, found.value_type), kind.list_size)
    if pa.types.is_list(kind) and pa.types.is_list(found):
        return pa.list_(widened(kind.value_type, found.value_type))
    if pa.types.is_map(kind) and pa.types.is_map(found):
        return pa.map_(kind.key_type, widened(kind.item_type, found.item_type))
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """The type with text for Arrow's null type, a struct without fields, and a part that is marked `MIXED`."""
    if pa.types.is_null(kind) or (pa.types.is_struct(kind) and not kind.num_fields):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _settled_part(field)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_settled_part(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_settled_part(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _settled_part(kind.item_field))
    return kind


def _settled_part(field: pa.Field) -> pa.DataType:
    return pa.string() if MIXED.items() <= (field.metadata or {}).items() else settled(field.type)


def asked_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one line a kind
    """The type in which a pass-through column is asked for: its own, but for those that DuckDB or Parquet have no room for.

    float16 is float32, decimal256 a decimal128 of as many digits or else text, a duration the whole number of its unit, as
    every reader but Arrow's finds it in the files.
    """
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal256(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _DECIMAL128_DIGITS else pa.string()
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(asked_type(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(asked_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(asked_type(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(asked_type(kind.key_type), asked_type(kind.item_type))
    return kind


def path_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a partition column is read from its path: its own, or text where Arrow cannot parse what is there."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ns" if kind.unit == "ns" else "us", kind.tz)  # Python writes six digits or none
    if pa.types.is_float16(kind):
        return pa.float32()
    unreadable = (pa.types.is_decimal, pa.types.is_duration, pa.types.is_binary, pa.types.is_fixed_size_binary)
    return pa.string() if any(is_one(kind) for is_one in unreadable) else kind

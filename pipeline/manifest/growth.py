"""Growth of pass-through column types from run to run, and the types in which readers request them."""

from __future__ import annotations

import pyarrow as pa

from pipeline.manifest.columns import MIXED

MAX_WIDENED_FIELDS = 1024
"""Most keys of one struct over all plans. Rows with more are rejected: such an object is really a map."""

_DECIMAL128_DIGITS = 38


def widened(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type with the additional keys of `other` wherever both are structs; other types are unchanged."""
    if pa.types.is_null(kind):
        return other
    if pa.types.is_struct(kind) and pa.types.is_struct(other):
        fields = {field.name.lower(): field for field in kind}
        for field in other:
            known = fields.get(field.name.lower())
            if known is not None:
                fields[field.name.lower()] = known.with_type(widened(known.type, field.type))
            elif len(fields) < MAX_WIDENED_FIELDS:
                fields[field.name.lower()] = field.with_nullable(True)
        return pa.struct(list(fields.values()))
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(other):
        return pa.list_(widened(kind.value_type, other.value_type), kind.list_size)
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(widened(kind.value_type, other.value_type))
    if pa.types.is_map(kind) and pa.types.is_map(other):
        return pa.map_(kind.key_type, widened(kind.item_type, other.item_type))
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """Return the type with text for Arrow's null type, a struct without fields and a part marked `MIXED`."""
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


def asked_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one line per kind
    """Return the type in which a pass-through column is requested, without types that DuckDB or Parquet lack.

    float16 becomes float32, decimal256 a decimal128 of as many digits or else text, and a duration the integer count of
    its unit, which is what every reader except Arrow's sees in the files.
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
    """Return the type in which a partition column is read from its path: its own, or text if Arrow cannot parse it."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ns" if kind.unit == "ns" else "us", kind.tz)  # Python writes six digits or none
    if pa.types.is_float16(kind):
        return pa.float32()
    unreadable = (pa.types.is_decimal, pa.types.is_duration, pa.types.is_binary, pa.types.is_fixed_size_binary)
    return pa.string() if any(is_one(kind) for is_one in unreadable) else kind

"""Types of the manifest columns we pass through: found in values, united over chunks and files, losing nothing.

JSON has no types for a column, only for each value, and a manifest is read as a stream: chunk 1 may hold whole numbers
where chunk 900 holds fractions or lists. `array_of` types one chunk's values, `unify` the chunks' schemas, `conform`
brings a chunk to the united schema. Where no one type holds every value exactly, the column becomes text: strings stay
as they are, everything else is its compact JSON. Numbers are never rounded to fit: beyond 2**53 beside fractions, or
beyond int64, they become text too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError

EXACT = 2**53
"""Every integer up to here is a float64."""

MAX_STRUCT_FIELDS = 256
"""An object with more keys over a chunk is a map in disguise (`{"word": score}`); as a struct it would be all nulls."""

_WIDE = {b"beyond_2_53": b"1"}  # on a field: it holds integers that float64 would round, so `unify` must not offer it

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)


class _NoOneType(Exception):
    """No single Arrow type holds all the values exactly."""


def array_of(values: Sequence[object]) -> pa.Array:
    """The JSON values of one column as an Arrow array of the type that holds them all, or of JSON text."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {str}:
        return pa.array(values, pa.string())
    try:
        return pa.array(values, _type_of(values))
    except (_NoOneType, pa.ArrowInvalid, OverflowError):
        return pa.array([_text(value) for value in values], pa.string())


def _type_of(values: Sequence[object]) -> pa.DataType:  # noqa: PLR0911 - one line a kind
    """Raises: _NoOneType."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.null()
    if kinds == {str}:
        return pa.string()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()  # beyond it pyarrow raises OverflowError
    if kinds <= {int, float}:
        if any(type(value) is int and abs(value) > EXACT for value in values):
            raise _NoOneType
        return pa.float64()
    if kinds == {list}:
        return pa.list_(_type_of([item for value in values if isinstance(value, list) for item in value]))
    if kinds == {dict}:
        return _struct_of([value for value in values if isinstance(value, dict)])
    raise _NoOneType


def _struct_of(objects: Sequence[dict[str, object]]) -> pa.DataType:
    keys: dict[str, None] = {}
    for value in objects:
        if not value:
            raise _NoOneType  # Parquet has no struct without fields, and null would be another value
        if not value.keys() <= keys.keys():
            keys.update(dict.fromkeys(value))
    # DuckDB and Spark compare names without case, inside structs too
    if (
        len(keys) > MAX_STRUCT_FIELDS
        or not all(key.isprintable() and key for key in keys)
        or len({key.lower() for key in keys}) < len(keys)
    ):
        raise _NoOneType
    return pa.struct([pa.field(key, _type_of([value.get(key) for value in objects])) for key in keys])


def field_of(name: str, array: pa.Array) -> pa.Field:
    """The column's field, marked when it holds integers that a later float64 would round."""
    return pa.field(name, array.type, metadata=_WIDE if _has_wide_integers(array) else None)


def _has_wide_integers(array: pa.Array | pa.ChunkedArray) -> bool:
    kind = array.type
    if isinstance(array, pa.ChunkedArray):
        return any(map(_has_wide_integers, array.chunks))
    if kind in (pa.int64(), pa.uint64()):
        ends = pc.min_max(array).as_py()
        return ends["max"] is not None and (ends["max"] > EXACT or ends["min"] < -EXACT)
    if pa.types.is_struct(kind):
        return any(map(_has_wide_integers, array.flatten()))
    if pa.types.is_map(kind):
        return _has_wide_integers(array.keys) or _has_wide_integers(array.items)
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and _has_wide_integers(array.flatten())


def plain_type(kind: pa.DataType, *, readable: bool = False) -> pa.DataType:  # noqa: PLR0911 - one line a kind
    """The type every Parquet reader knows for the same values: dictionaries decoded, `large_` and view types plain.

    Args:
        readable: also turn times and decimals into text, for values on their way to JSON.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type, readable=readable)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type, readable=readable)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain_type(field.type, readable=readable)) for field in kind])
    if pa.types.is_map(kind):
        key, item = (plain_type(part, readable=readable) for part in (kind.key_type, kind.item_type))
        return pa.map_(key, item)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type, readable=readable), kind.list_size)
    if any(is_one(kind) for is_one in _LISTS):
        return pa.list_(plain_type(kind.value_type, readable=readable))
    if readable and (pa.types.is_temporal(kind) or pa.types.is_decimal(kind)):
        return pa.string()
    return kind


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for chunks of one or many manifests: every column any of them has, in first-seen order.

    Columns whose names differ only in case are one, under the first: DuckDB and Spark cannot tell them apart.
    null + T is T, whole numbers + fractions are float64, structs take each other's fields, and what does not go
    together is string (see `conform`). Can be fed its own result again. A column without any value stays null.
    """
    fields: dict[str, pa.Field] = {}
    spelling: dict[str, str] = {}
    for schema in schemas:
        for field in schema:
            name = spelling.setdefault(field.name.lower(), field.name)
            fields[name] = _merge_fields(fields[name], field.with_name(name)) if name in fields else field
    return pa.schema(list(fields.values()))


def _merge_fields(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.equals(other, check_metadata=True):
        return one
    wide = any(key in (field.metadata or {}) for field in (one, other) for key in _WIDE)
    try:
        kind = _merge(one.type, other.type, wide=wide)
    except _NoOneType:
        kind = pa.string()
    return pa.field(one.name, kind, one.nullable or other.nullable, metadata=_WIDE if wide else None)


def _merge(one: pa.DataType, other: pa.DataType, *, wide: bool) -> pa.DataType:  # noqa: PLR0911 - one line a rule
    """Raises: _NoOneType."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _merge_structs(one, other, wide=wide)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_merge(one.value_type, other.value_type, wide=wide))
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        if {one, other} & {pa.uint64()} and (pa.types.is_signed_integer(one) or pa.types.is_signed_integer(other)):
            raise _NoOneType
        return pa.uint64() if pa.uint64() in (one, other) else pa.int64()
    numbers = [kind for kind in (one, other) if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if len(numbers) == 2 and not wide:
        return pa.float64()
    if len(numbers) == 2 and not any(map(pa.types.is_integer, numbers)):
        return pa.float64()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz == other.tz:
        return max(one, other, key=lambda kind: ("s", "ms", "us", "ns").index(kind.unit))
    raise _NoOneType


def _merge_structs(one: pa.DataType, other: pa.DataType, *, wide: bool) -> pa.DataType:
    kinds = {field.name: field.type for field in one}
    for field in other:
        kinds[field.name] = _merge(kinds[field.name], field.type, wide=wide) if field.name in kinds else field.type
    if len(kinds) > MAX_STRUCT_FIELDS or len({name.lower() for name in kinds}) < len(kinds):
        raise _NoOneType
    return pa.struct([pa.field(name, kind) for name, kind in kinds.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a chunk to a schema from `unify`: absent columns are null, values are cast exactly or become JSON text.

    Raises: ConfigError when the schema does not come from a `unify` that saw this table: a column it lacks, or a type
    that cannot hold a value exactly.
    """
    spelling = {name.lower(): name for name in schema.names}
    table = table.rename_columns([spelling.get(name.lower(), name) for name in table.column_names])
    lost = sorted(set(table.column_names) - set(schema.names))
    if lost:
        raise ConfigError(f"columns {', '.join(map(repr, lost))} are not in the schema to conform to")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            columns.append(_cast(table[field.name], field))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if column.type == field.type:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), field.type)
    if pa.types.is_string(field.type):
        return json_text(column)
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        pass  # structs that gain a field, in some versions: rebuild them from values, as exactly
    try:
        return pa.array(to_python(column), field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise ConfigError(f"column {field.name!r}: its {column.type} values do not fit {field.type} exactly") from None


def json_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as text: strings stay, null stays null, everything else is compact JSON (times, decimals: text)."""
    return pa.array([_text(value) for value in to_python(column)], pa.string())


def to_python(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Python values, with times and decimals as text: without pandas, nanoseconds have no Python value."""
    kind = plain_type(column.type, readable=True)
    values: list[object] = (column if kind == column.type else column.cast(kind)).to_pylist()
    return values


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_bytes_text)


def _bytes_text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"no JSON for a {type(value).__name__}")

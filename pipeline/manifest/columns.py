"""Types of pass-through manifest columns, inferred from values and merged over chunks and files without loss.

JSON has types for values only, not for columns, and a manifest is read as a stream: chunk 1 may contain whole numbers
where chunk 900 contains fractions or lists. `array_of` infers the type of one chunk's values, `unify` merges the
chunks' schemas, and `pipeline.manifest.fit` converts a chunk to a schema. Where no single type holds every value
exactly, the column becomes text: strings are unchanged, and other values become compact JSON. Numbers are never
rounded: a column with integers beyond 2**53 beside fractions, or beyond int64, becomes text too.

Until then, a chunk with values of several kinds is a column of JSON documents, which distinguishes 7 from "7": the
column type of an existing dataset may hold one and not the other. The field of such a column is marked `MIXED`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

EXACT = 2**53
"""Bound up to which float64 represents every integer exactly."""

MAX_STRUCT_FIELDS = 256
"""Most keys of an object in a chunk. With more it is a map (`{"word": score}`); a struct would be mostly nulls."""

DOCUMENTS = pa.json_()
"""Type that `array_of` returns for values without a common type: JSON documents, in which strings are quoted."""

_WIDE = {b"beyond_2_53": b"1"}  # on a field with integers that float64 would round: `unify` must not choose float64
MIXED = {b"mixed": b"1"}
"""Mark of a text field that may hold JSON of any value, because the column had values of several kinds, or none yet.

A marked column of a chunk holds documents, as returned by `array_of`."""
_SCALARS = {b"scalars": b"1"}  # with MIXED: some values were neither lists nor objects
_NESTED = b"nested"  # with MIXED: a schema whose only field has the type of the lists and objects

KEPT_MARKS = frozenset((*_WIDE, *MIXED))
"""Marks that a plan keeps; the others describe the values in its manifests."""

_EMPTY = {b"no_values": b"1"}  # on a field with no value but null, so its type does not matter

UNTYPED = {b"untyped": b"1"}
"""Mark of a chunk's text field whose source has no types, such as CSV cells and values in folder names."""
_BLANK = {b"blank": b"1"}  # with UNTYPED: every cell is empty

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)


class _NoOneType(Exception):
    """No single Arrow type holds all the values exactly."""


def array_of(values: Sequence[object]) -> pa.Array:
    """Return the JSON values of one column as an Arrow array of a type that holds them all, or of `DOCUMENTS`."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {str}:
        return pa.array(values, pa.string())
    try:
        return pa.array(values, _type_of(values))
    except (_NoOneType, pa.ArrowInvalid, OverflowError):
        documents = [None if value is None else json_of(value) for value in values]
        return pa.ExtensionArray.from_storage(DOCUMENTS, pa.array(documents, pa.string()))


def _type_of(values: Sequence[object]) -> pa.DataType:  # noqa: PLR0911 - one line per kind
    """Return the type that holds all values exactly. Raises: _NoOneType."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.null()
    if kinds == {str}:
        return pa.string()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()  # pyarrow raises OverflowError for larger integers
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
            raise _NoOneType  # Parquet has no struct without fields, and null would be a different value
        if not value.keys() <= keys.keys():
            keys.update(dict.fromkeys(value))
    # DuckDB and Spark ignore the case of names, inside structs too
    if (
        len(keys) > MAX_STRUCT_FIELDS
        or not all(key.isprintable() and key for key in keys)
        or len({key.lower() for key in keys}) < len(keys)
    ):
        raise _NoOneType
    return pa.struct([pa.field(key, _type_of([value.get(key) for value in objects])) for key in keys])


def documents(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Parse the values of a column of JSON documents."""
    return [None if value is None else json.loads(value) for value in column.cast(pa.string()).to_pylist()]


def field_of(name: str, array: pa.Array) -> pa.Field:
    """Return the column's field, with the marks that `unify` and `settle_types` need besides its type."""
    if array.type == DOCUMENTS:
        values = documents(array)
        nested = [value for value in values if isinstance(value, list | dict)]
        scalars = len(nested) < len(values) - array.null_count
        return pa.field(name, pa.string(), metadata=_mixed(_loose_field("", nested).type, scalars=scalars))
    if array.null_count == len(array):
        return pa.field(name, array.type, metadata=_EMPTY)
    return pa.field(name, array.type, metadata=_WIDE if _has_wide_integers(array) else None)


def untyped_field(name: str, cells: pa.Array) -> pa.Field:
    """Return the field of a column from a format without types."""
    blank = pa.types.is_null(cells.type) or pc.all(pc.equal(pc.utf8_length(cells), 0)).as_py() is not False
    return pa.field(name, cells.type, metadata={**UNTYPED, **(_BLANK if blank else {})})


def _mixed(nested: pa.DataType, *, scalars: bool) -> dict[bytes, bytes]:
    types = {} if pa.types.is_null(nested) else {_NESTED: pa.schema([pa.field("", nested)]).serialize().to_pybytes()}
    return {**MIXED, **types, **(_SCALARS if scalars else {})}


def nested_part(field: pa.Field) -> pa.DataType:
    """Return the type of a column's lists and objects, loose enough for all of them; null if there are none."""
    marks = field.metadata or {}
    nested = marks.get(_NESTED)
    if nested is not None:
        return pa.ipc.read_schema(pa.py_buffer(nested)).field(0).type
    return field.type if pa.types.is_nested(field.type) and not _EMPTY.keys() <= marks.keys() else pa.null()


def has_scalars(field: pa.Field) -> bool:
    """Return whether the column has values that are neither lists nor objects."""
    marks = field.metadata or {}
    if _EMPTY.keys() <= marks.keys() or _BLANK.keys() <= marks.keys():
        return False
    if MIXED.keys() <= marks.keys():
        return _SCALARS.keys() <= marks.keys()
    return not (pa.types.is_nested(field.type) or pa.types.is_null(field.type))


def _loose_field(name: str, values: Sequence[object]) -> pa.Field:
    """Return a field that keeps as much type as possible when the values have no common type.

    Unlike with `_type_of`, one value does not make the whole column text: structs have all keys, and only parts whose
    values differ are text. If lists or objects are among other values, the field has their type and is marked `MIXED`.
    """
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    scalars = [value for value in values if value is not None and not isinstance(value, list | dict)]
    keys = {key: None for value in objects for key in value if key and key.isprintable()}
    if keys or (objects and not lists):  # of both, the objects: they are what new keys come in
        kind = pa.struct([_loose_field(key, [value.get(key) for value in objects]) for key in keys])
    elif lists:
        kind = pa.list_(_loose_field("item", [item for value in lists for item in value]))
    else:
        return pa.field(name, _loose_scalar(scalars))
    return pa.field(name, kind, metadata=MIXED if scalars or (objects and lists) else None)


def _loose_scalar(values: Sequence[object]) -> pa.DataType:
    if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        return pa.string()
    try:
        return _type_of(values)
    except _NoOneType:
        return pa.string()


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


def plain_type(kind: pa.DataType, *, readable: bool = False) -> pa.DataType:  # noqa: PLR0911 - one line per kind
    """Return an equivalent type that every Parquet reader knows: no dictionary, `large_` or view types.

    Args:
        readable: also replace times and decimals by text, for conversion to JSON.
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
    if is_list_like(kind):
        return pa.list_(plain_type(kind.value_type, readable=readable))
    if readable and (pa.types.is_temporal(kind) or pa.types.is_decimal(kind)):
        return pa.string()
    return kind


def is_list_like(kind: pa.DataType) -> bool:
    """Return whether a type is a list of variable length."""
    return any(is_one(kind) for is_one in _LISTS)


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Merge the schemas of chunks of one or many manifests: all their columns, in first-seen order.

    Columns whose names differ only in case become one, under the first name: DuckDB and Spark do not distinguish them.
    null + T is T, whole numbers + fractions are float64, structs gain each other's fields, and incompatible types
    become string (see `conform`). The result can be merged again. A column without any value stays null.
    """
    fields: dict[str, pa.Field] = {}
    spelling: dict[str, str] = {}
    for schema in schemas:
        for field in schema:
            name = spelling.setdefault(field.name.lower(), field.name)
            merged = field.with_name(name)
            if UNTYPED.items() <= (field.metadata or {}).items():
                merged = (
                    merged.with_metadata(_BLANK) if _BLANK.keys() <= field.metadata.keys() else merged.remove_metadata()
                )
            fields[name] = _merge_fields(fields[name], merged) if name in fields else merged
    return pa.schema(list(fields.values()))


def _merge_fields(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.equals(other, check_metadata=True):
        return one
    for empty, full in ((one, other), (other, one)):
        if _EMPTY.items() <= (empty.metadata or {}).items() and not _EMPTY.items() <= (full.metadata or {}).items():
            return full.with_name(one.name)
    marks = [*(one.metadata or {}), *(other.metadata or {})]
    wide = not set(marks).isdisjoint(_WIDE)
    try:
        kind = _merge(one.type, other.type, wide=wide)
        mixed = not set(marks).isdisjoint(MIXED)
    except _NoOneType:
        kind, mixed = pa.string(), True
    metadata = {mark: b"1" for mark in (*_WIDE, *_EMPTY, *_BLANK) if marks.count(mark) > (mark not in _WIDE)}
    if mixed:
        nested = _loose_merge(pa.field("", nested_part(one)), pa.field("", nested_part(other))).type
        metadata |= _mixed(nested, scalars=has_scalars(one) or has_scalars(other))
    return pa.field(one.name, kind, one.nullable or other.nullable, metadata=metadata or None)


def _loose_merge(one: pa.Field, other: pa.Field) -> pa.Field:
    """Merge two results of `_loose_field` to its result for the values of both."""
    if pa.types.is_null(one.type) or pa.types.is_null(other.type):
        return other.with_name(one.name) if pa.types.is_null(one.type) else one
    nested = [field for field in (one, other) if pa.types.is_nested(field.type)]
    mixed = len(nested) == 1 or any(MIXED.items() <= (field.metadata or {}).items() for field in nested)
    if not nested:
        try:
            return pa.field(one.name, _merge(one.type, other.type, wide=True))
        except _NoOneType:
            return pa.field(one.name, pa.string())
    kind = nested[0].type
    if len(nested) > 1 and pa.types.is_struct(one.type) and pa.types.is_struct(other.type):
        fields = {field.name: field for field in one.type}
        for field in other.type:
            fields[field.name] = _loose_merge(fields[field.name], field) if field.name in fields else field
        kind = pa.struct(list(fields.values()))
    elif len(nested) > 1 and pa.types.is_list(one.type) and pa.types.is_list(other.type):
        kind = pa.list_(_loose_merge(one.type.value_field, other.type.value_field))
    elif len(nested) > 1 and one.type != other.type:
        has_keys = pa.types.is_struct(one.type) and one.type.num_fields
        kind, mixed = one.type if has_keys else other.type, True
    return pa.field(one.name, kind, metadata=MIXED if mixed else None)


def _merge(one: pa.DataType, other: pa.DataType, *, wide: bool) -> pa.DataType:  # noqa: PLR0911 - one line per rule
    """Return the type that holds all values of both types exactly. Raises: _NoOneType."""
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


def json_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Convert a column to text: strings and nulls stay, times and decimals are text, other values compact JSON."""
    return pa.array([text_of(value) for value in to_python(column)], pa.string())


def to_python(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Return Python values, with times and decimals as text: without pandas, nanoseconds have no Python value."""
    if column.type == DOCUMENTS:
        return documents(column)
    kind = plain_type(column.type, readable=True)
    values: list[object] = (column if kind == column.type else column.cast(kind)).to_pylist()
    return values


def text_of(value: object) -> str | None:
    """Return a value as written to a text column: strings and None unchanged, other values as `json_of`."""
    return value if value is None or isinstance(value, str) else json_of(value)


def json_of(value: object) -> str:
    """Return a value as compact JSON, with bytes as base64 and other types without JSON form as `str`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=no_json)


def no_json(value: object) -> str:
    """Return the text for a value without JSON form; the `default` of `json.dumps`."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)

"""What all plans of one output share: `_dataset.json`, and the refusal to mix two kinds of rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.config.settings import Settings
from pipeline.dataset.plan import Plan
from pipeline.errors import ConfigError
from pipeline.layout import DATASET
from pipeline.manifest.columns import KEPT_MARKS, MIXED, has_scalars, nested_part, unify
from pipeline.manifest.growth import settled, widened
from pipeline.pins import ModelPin, Pins
from pipeline.storage.documents import FORMAT, create_json, read_document
from pipeline.storage.store import Store


def claim_dataset(store: Store, settings: Settings) -> None:
    """Create `_dataset.json`, or make sure that the one there says the same.

    Raises: ConfigError naming every setting that differs.
    """
    token = uuid.uuid4().hex
    document = {"format": FORMAT, "settings": settings.document(), "token": token}
    if not create_json(store, DATASET, document, mine=("token", token)):
        compare_settings(_settings(store), settings)


def dataset_settings(store: Store) -> Settings | None:
    """Return the settings of an existing dataset, or None at a new output. Raises: ConfigError for a damaged `_dataset.json`."""
    try:
        return _settings(store)
    except FileNotFoundError:
        return None


def _settings(store: Store) -> Settings:
    try:
        return Settings.of(read_document(store, DATASET)["settings"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{store.root}/{DATASET} cannot be read: {error}") from error


def compare_settings(there: Settings, asked: Settings) -> None:
    """Refuse to mix rows of different settings in one dataset. Raises: ConfigError naming the settings that differ."""
    _compare(there.document(), asked.document(), what="settings")


def _compare(there: Mapping[str, Any], asked: Mapping[str, Any], *, what: str) -> None:
    differing = [name for name in sorted({*there, *asked}) if there.get(name) != asked.get(name)]
    if differing:
        lines = [f"  {name}: there {there.get(name)!r}, asked {asked.get(name)!r}" for name in differing]
        raise ConfigError(
            f"the output holds a dataset made with other {what}; use another --output, or the {what} it has:\n"
            + "\n".join(lines)
        )


def settle_types(extra: pa.Schema, plans: Iterable[Plan]) -> pa.Schema:
    """Give pass-through columns the names and types they have in earlier plans, so that one column is one in all files.

    A struct takes the keys that are new; everything else keeps its type, and a row whose value does not fit is rejected
    (`manifest.fit`). A column without a value anywhere is text, also inside a nested one: Arrow's null type would clash
    with whatever comes later.

    Args:
        extra: the columns as `unify` found them in the manifests.
    Raises: ConfigError when a column changes between scalar and nested.
    """
    there = dataset_columns(plans)
    columns = []
    for field in extra:
        known = there.get(field.name.lower())
        if known is None:
            marks = {name: value for name, value in (field.metadata or {}).items() if name in KEPT_MARKS}
            marks |= MIXED if pa.types.is_null(field.type) else {}
            columns.append(pa.field(field.name, settled(field.type), metadata=marks or None))
            continue
        _refuse_change(field, known)
        columns.append(known.with_type(settled(widened(known.type, nested_part(field)))))
    return pa.schema(columns)


def with_columns(extra: pa.Schema, names: Iterable[str], plans: Iterable[Plan]) -> pa.Schema:
    """The schema with these columns too, as earlier plans have them or else as text, for manifests without any row."""
    there = dataset_columns(plans)
    missing = [name for name in names if name not in extra.names and name != "language"]
    return pa.schema([*extra, *(there.get(name.lower(), pa.field(name, pa.string())) for name in missing)])


def dataset_columns(plans: Iterable[Plan]) -> dict[str, pa.Field]:
    """The pass-through columns of all plans by their names in lower case: DuckDB and Spark tell no others apart."""
    columns: dict[str, pa.Field] = {}
    for plan in plans:
        add_columns(columns, plan.extra)
    return columns


def add_columns(columns: dict[str, pa.Field], extra: pa.Schema) -> None:
    """Widen `columns`, keyed by name in lower case, by those of one more plan."""
    for field in extra:
        known = columns.setdefault(field.name.lower(), field)
        columns[field.name.lower()] = known.with_type(widened(known.type, field.type))


def _refuse_change(field: pa.Field, known: pa.Field) -> None:
    nested = nested_part(field)
    if pa.types.is_nested(known.type):
        changed = has_scalars(field) and pa.types.is_null(nested)
    else:
        mixed = MIXED.items() <= (known.metadata or {}).items()
        changed = not (has_scalars(field) or pa.types.is_null(nested) or mixed)
    if changed:
        raise ConfigError(
            f"column {field.name!r} is {field.type} in the manifests, and {known.type} in the output; a column cannot change "
            "between single values and lists or objects. Rename it in the manifest, or use another --output"
        )


def read_columns(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of files that are read together, by the very names they have there, with types that hold the values of
    each: later plans have more keys in a struct, and versions before this one let types and the case of names differ.
    """
    columns: dict[str, pa.Field] = {}
    for field in (field for schema in schemas for field in schema):
        known = columns.setdefault(field.name, field)
        kind = widened(known.type, field.type)
        if widened(field.type, known.type) != kind and not pa.types.is_nested(kind):
            kind = unify([pa.schema([known]), pa.schema([field])]).field(0).type
        columns[field.name] = known.with_type(kind)
    return pa.schema([field.remove_metadata() for field in columns.values()])


def different_columns(extra: pa.Schema, earlier: Mapping[str, pa.Field]) -> list[str]:
    """Name the columns of a plan that differ from those of earlier plans: in type, or in the case of their names.

    Args:
        earlier: as `dataset_columns` returns it.
    """
    return [
        field.name
        for field in extra
        if (known := earlier.get(field.name.lower())) is not None
        and (known.name != field.name or not _grown(known.type, field.type))
    ]


def _grown(known: pa.DataType, kind: pa.DataType) -> bool:
    """Whether a later plan's type holds everything that an earlier one holds, as it is."""
    return bool(widened(known, kind) == kind)


def compare_models(plans: Iterable[Plan], models: Pins) -> None:
    """Refuse a dataset whose earlier plans used other weights for the same task. Raises: ConfigError naming them."""
    for plan in plans:
        other = [role for role in plan.models if role in models and plan.models[role].sha256 != models[role].sha256]
        theirs, ours = ({str(role): _described(pins[role]) for role in other} for pins in (plan.models, models))
        _compare(theirs, ours, what="models")


def _described(pin: ModelPin) -> str:
    return f"{pin.spec} sha256 {pin.sha256[:12]}"

"""Settings and columns that all plans of one output share (`_dataset.json`), and checks against mixing kinds of rows."""

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
from pipeline.storage.versions import require_unversioned


def claim_dataset(store: Store, settings: Settings) -> None:
    """Create `_dataset.json`, or check that the existing one has the same settings.

    Raises: ConfigError naming every setting that differs, or for a bucket with old versions of deleted texts.
    """
    if settings.texts != "keep":
        require_unversioned(store, "--texts deletes the texts of a finished run")
    token = uuid.uuid4().hex
    document = {"format": FORMAT, "settings": settings.document(), "token": token}
    if not create_json(store, DATASET, document, mine=("token", token)):
        compare_settings(_settings(store), settings)


def dataset_settings(store: Store) -> Settings | None:
    """Return the settings of an existing dataset; None for a new output.

    Raises: ConfigError for a damaged `_dataset.json`.
    """
    try:
        return _settings(store)
    except FileNotFoundError:
        return None


def _settings(store: Store) -> Settings:
    try:
        return Settings.of(read_document(store, DATASET)["settings"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{store.root}/{DATASET} cannot be read: {error}") from error


def compare_settings(recorded: Settings, asked: Settings) -> None:
    """Check that two sets of settings are equal. Raises: ConfigError naming the settings that differ."""
    _compare(recorded.document(), asked.document(), what="settings")


def _compare(recorded: Mapping[str, Any], asked: Mapping[str, Any], *, what: str) -> None:
    differing = [name for name in sorted({*recorded, *asked}) if recorded.get(name) != asked.get(name)]
    if differing:
        lines = [f"  {name}: {recorded.get(name)!r} in the output, {asked.get(name)!r} requested" for name in differing]
        raise ConfigError(
            f"the output was made with other {what}; use another --output, or these {what}:\n" + "\n".join(lines)
        )


def settle_types(extra: pa.Schema, plans: Iterable[Plan]) -> pa.Schema:
    """Give pass-through columns the names and types they have in earlier plans, so that they agree across all files.

    New keys are added to a struct; everything else keeps its type, and a row whose value does not fit is rejected
    (`manifest.fit`). A column without any value becomes text, also inside a nested column: Arrow's null type would
    conflict with later types.

    Args:
        extra: the columns of the manifests, as `unify` returns them.
    Raises: ConfigError when a column changes between scalar and nested.
    """
    known_columns = dataset_columns(plans)
    columns = []
    for field in extra:
        known = known_columns.get(field.name.lower())
        if known is None:
            marks = {name: value for name, value in (field.metadata or {}).items() if name in KEPT_MARKS}
            marks |= MIXED if pa.types.is_null(field.type) else {}
            columns.append(pa.field(field.name, settled(field.type), metadata=marks or None))
            continue
        _refuse_change(field, known)
        columns.append(known.with_type(settled(widened(known.type, nested_part(field)))))
    return pa.schema(columns)


def with_columns(extra: pa.Schema, names: Iterable[str], plans: Iterable[Plan]) -> pa.Schema:
    """Return the schema with the named columns added, typed as in earlier plans or else as text.

    Used for manifests without any row.
    """
    known_columns = dataset_columns(plans)
    missing = [name for name in names if name not in extra.names and name != "language"]
    return pa.schema([*extra, *(known_columns.get(name.lower(), pa.field(name, pa.string())) for name in missing)])


def dataset_columns(plans: Iterable[Plan]) -> dict[str, pa.Field]:
    """Return the pass-through columns of all plans by lower-case name: DuckDB and Spark ignore the case of names."""
    columns: dict[str, pa.Field] = {}
    for plan in plans:
        add_columns(columns, plan.extra)
    return columns


def add_columns(columns: dict[str, pa.Field], extra: pa.Schema) -> None:
    """Widen `columns`, keyed by lower-case name, by the columns of one more plan."""
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
            f"column {field.name!r} is {field.type} in the manifests and {known.type} in the output; a column cannot change "
            "between single values and lists or objects. Rename it in the manifest, or use another --output"
        )


def read_columns(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the columns of files that are read together, with types that hold the values of every file.

    Names keep their case. Later plans have more keys in a struct, and earlier versions of the pipeline let types and the
    case of names differ between plans.
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
    """Return the names of a plan's columns that differ from earlier plans in type or in the case of the name.

    Args:
        earlier: columns by lower-case name, as `dataset_columns` returns them.
    """
    return [
        field.name
        for field in extra
        if (known := earlier.get(field.name.lower())) is not None
        and (known.name != field.name or not _grown(known.type, field.type))
    ]


def _grown(known: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether a later plan's type holds every value of an earlier plan's type unchanged."""
    return bool(widened(known, kind) == kind)


def compare_models(plans: Iterable[Plan], models: Pins) -> None:
    """Check that earlier plans used the same weights for the same role. Raises: ConfigError naming the differences."""
    for plan in plans:
        other = [role for role in plan.models if role in models and plan.models[role].sha256 != models[role].sha256]
        theirs, ours = ({str(role): _described(pins[role]) for role in other} for pins in (plan.models, models))
        _compare(theirs, ours, what="models")


def _described(pin: ModelPin) -> str:
    return f"{pin.spec} sha256 {pin.sha256[:12]}"

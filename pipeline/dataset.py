"""What all plans of one output share: `_dataset.json`, and the refusal to mix two kinds of rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.plan import FORMAT, Plan, create_json, read_document
from pipeline.storage import Store


def claim_dataset(store: Store, settings: Mapping[str, Any]) -> None:
    """Create `_dataset.json`, or make sure that the one there says the same.

    Raises: ConfigError naming every setting that differs.
    """
    token = uuid.uuid4().hex
    document = {"format": FORMAT, "settings": dict(settings), "token": token}
    if not create_json(store, "_dataset.json", document, mine=("token", token)):
        compare_settings(read_document(store, "_dataset.json")["settings"], settings, what="settings")


def dataset_settings(store: Store) -> dict[str, Any] | None:
    """The settings of an existing dataset, or None at a new output."""
    try:
        settings: dict[str, Any] = read_document(store, "_dataset.json")["settings"]
    except FileNotFoundError:
        return None
    return settings


def compare_settings(there: Mapping[str, Any], asked: Mapping[str, Any], *, what: str) -> None:
    """Refuse to mix two kinds of rows in one dataset. Raises: ConfigError naming what differs."""
    differing = [name for name in sorted({*there, *asked}) if there.get(name) != asked.get(name)]
    if differing:
        lines = [f"  {name}: there {there.get(name)!r}, asked {asked.get(name)!r}" for name in differing]
        raise ConfigError(
            f"the output holds a dataset made with other {what}; use another --output, or the {what} it has:\n"
            + "\n".join(lines)
        )


def settle_types(extra: pa.Schema, plans: Iterable[Plan]) -> pa.Schema:
    """Give pass-through columns the types they have in earlier plans, so that one column has one type in all files.

    A column without a value anywhere is text: Arrow's null type would clash with whatever comes later. Values that do not
    fit the earlier type are refused where they are cast (`manifest.columns.conform`).
    """
    earlier = {field.name: field.type for plan in reversed(list(plans)) for field in plan.extra}
    fields = [field.with_type(earlier.get(field.name, field.type)) for field in extra]
    return pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in fields])


def compare_models(plans: Iterable[Plan], models: Mapping[str, Any]) -> None:
    """Refuse a dataset whose earlier plans used other weights for the same task. Raises: ConfigError naming them."""
    for plan in plans:
        shared = {slot: plan.models[slot] for slot in plan.models if slot in models}
        theirs = {slot: f"{m['spec']} sha256 {m['sha256'][:12]}" for slot, m in shared.items()}
        ours = {slot: f"{models[slot]['spec']} sha256 {models[slot]['sha256'][:12]}" for slot in shared}
        same = {slot for slot in shared if shared[slot]["sha256"] == models[slot]["sha256"]}
        compare_settings(
            {slot: theirs[slot] for slot in shared if slot not in same},
            {slot: ours[slot] for slot in shared if slot not in same},
            what="models",
        )

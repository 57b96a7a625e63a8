"""Erasure of rows from Delta, Iceberg and Lance tables, with the versions and logs that still have them.

No library does all of it: delta-rs keeps the old entries of its log, with statistics, for 30 days, and pyiceberg expires
snapshots without deleting their files. Each step can be repeated. Nothing else may write to the table meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa

from pipeline.analytics.publish import catalog_properties, storage_options
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.reader import optional
from pipeline.errors import ConfigError, JobError
from pipeline.manifest.hash_buckets import id_keys
from pipeline.storage.cleanup import cause, remove, walk
from pipeline.storage.store import open_store

_IDS_AT_ONCE = 500
_AT_ONCE = {
    "delta.logRetentionDuration": "interval 0 seconds",
    "delta.deletedFileRetentionDuration": "interval 0 seconds",
}
_DEFAULTS = {"delta.logRetentionDuration": "interval 30 days", "delta.deletedFileRetentionDuration": "interval 1 week"}


def parse_table(text: str) -> tuple[str, str]:
    """Split `delta:URI`, `iceberg:NAMESPACE.NAME` or `lance:URI`. Raises: ConfigError."""
    form, _, table = text.partition(":")
    if form not in _FORMATS or not table:
        raise ConfigError(f"--table {text}: write {', '.join(f'{name}:TABLE' for name in _FORMATS)}")
    return form, table


def require_table(text: str) -> None:
    """Check that a table exists and can be read. Raises: ConfigError."""
    form, table = parse_table(text)
    _FORMATS[form](table, None)


def erase_from_table(text: str, gone: Tombstones) -> int:
    """Delete rows by their recording id, and everything that only earlier versions of the table need.

    Returns: number of recordings that were deleted now.
    Raises: ConfigError when the package is missing or the table cannot be read; JobError when it cannot be changed.
    """
    form, table = parse_table(text)
    try:
        return _FORMATS[form](table, gone)
    except (ValueError, OSError) as error:
        raise JobError(f"{table} cannot be changed: {cause(error)}") from error


def _unreadable(form: str, table: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--table {form}:{table} cannot be read: {cause(error)}. If an erasure was interrupted and the table does not exist any "
        f"more: --finish --skip-table {form}:{table}"
    )


def _erased_ids(batches: Iterable[pa.RecordBatch], gone: Tombstones) -> list[str]:
    found: set[str] = set()
    for batch in batches:
        names = batch.column("recording_id").unique().drop_null().to_pylist()
        mask = gone.matches(id_keys(names))
        found.update(name for name, is_gone in zip(names, mask.tolist(), strict=True) if is_gone)
    return sorted(found)


def _predicates(ids: list[str]) -> Iterator[str]:
    for start in range(0, len(ids), _IDS_AT_ONCE):
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in ids[start : start + _IDS_AT_ONCE])
        yield f"recording_id IN ({names})"


def _delta(table: str, gone: Tombstones | None) -> int:
    delta = optional("deltalake", extra="delta")
    stored = storage_options(table)

    def opened() -> Any:  # noqa: ANN401 - a DeltaTable
        return delta.DeltaTable(table, storage_options=stored)

    try:
        known = opened()
    except (delta.exceptions.DeltaError, OSError) as error:
        raise _unreadable("delta", table, error) from error
    if gone is None:
        return 0
    try:
        ids = _erased_ids(known.to_pyarrow_dataset().scanner(columns=["recording_id"]).to_batches(), gone)
        for predicate in _predicates(ids):
            opened().delete(predicate)
        before = {name: known.metadata().configuration.get(name, default) for name, default in _DEFAULTS.items()}
        if before == _AT_ONCE:  # a run that was killed before it restored them
            before = dict(_DEFAULTS)
        opened().alter.set_table_properties(_AT_ONCE)
        opened().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        opened().create_checkpoint()
        opened().cleanup_metadata()
        opened().alter.set_table_properties(before)
    except delta.exceptions.DeltaError as error:
        raise JobError(f"{table} cannot be changed: {cause(error)}") from error
    return len(ids)


def _lance(table: str, gone: Tombstones | None) -> int:
    lance = optional("lance", extra="lance")
    stored = storage_options(table)

    def opened() -> Any:  # noqa: ANN401 - a LanceDataset
        return lance.dataset(table, storage_options=stored)

    try:
        known = opened()
    except (ValueError, OSError) as error:
        raise _unreadable("lance", table, error) from error
    if gone is None:
        return 0
    ids = _erased_ids(known.to_batches(columns=["recording_id"]), gone)
    for predicate in _predicates(ids):
        opened().delete(predicate)
    for index in opened().describe_indices():
        opened().drop_index(index.name)  # it has the vectors of deleted rows; jobs.search --index makes it again
    opened().optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
    opened().cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    return len(ids)


def _iceberg(table: str, gone: Tombstones | None) -> int:
    optional("pyiceberg", extra="iceberg")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, RESTError
    from pyiceberg.expressions import In

    try:
        catalog = load_catalog(**catalog_properties())
        opened = catalog.load_table(table)
    except (NoSuchTableError, ValueError, RESTError, OSError) as error:
        raise _unreadable("iceberg", table, error) from error
    if gone is None:
        return 0
    try:
        ids = _erased_ids(opened.scan(selected_fields=("recording_id",)).to_arrow_batch_reader(), gone)
        for start in range(0, len(ids), _IDS_AT_ONCE):
            opened.delete(In("recording_id", ids[start : start + _IDS_AT_ONCE]))
            opened = catalog.load_table(table)
        # manifests of the snapshot that deletes have bounds of the deleted files; those of the next one do not
        opened.append(opened.schema().as_arrow().empty_table())
        opened = catalog.load_table(table)
        current = opened.current_snapshot()
        old = [each.snapshot_id for each in opened.snapshots() if current and each.snapshot_id != current.snapshot_id]
        if old:
            opened.maintenance.expire_snapshots().by_ids(old).commit()
    except (CommitFailedException, RESTError) as error:
        raise JobError(f"{table} cannot be changed: {cause(error)}") from error
    _remove_unreferenced(catalog.load_table(table))
    return len(ids)


def _remove_unreferenced(opened: Any) -> None:  # noqa: ANN401 - an Iceberg table
    """Delete the data and manifests below a table's location that no snapshot names."""
    named = set()
    for snapshot in opened.snapshots():
        named.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(opened.io):
            named.add(manifest.manifest_path)
            named.update(entry.data_file.file_path for entry in manifest.fetch_manifest_entry(opened.io))
    location = opened.location().removeprefix("file://")
    keep, store = {name.removeprefix("file://") for name in named}, open_store(location)
    for folder in ("data", "metadata"):
        for file in list(walk(store, folder)):
            if file.key.endswith((".parquet", ".avro")) and f"{location}/{file.key}" not in keep:
                remove(store, file.key)


_FORMATS: dict[str, Callable[[str, Tombstones | None], int]] = {"delta": _delta, "iceberg": _iceberg, "lance": _lance}

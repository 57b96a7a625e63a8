"""Publishing of finished runs to a lakehouse table, one commit per run, with the library of the table's format.

Runs that the table already has are skipped, so the next publisher completes the work of a killed one. Delta: the commit
carries a transaction identifier of the run, which delta-rs refuses to commit twice, so concurrent publishers are safe.
Lance and Iceberg: one publisher at a time. Appends to Lance never conflict, and pyiceberg retries conflicting ones:
two concurrent publishers wrote a run twice.

Each library finds credentials in its own way, and all of them read `AWS_ACCESS_KEY_ID` and similar variables. They
differ in how an endpoint other than Amazon's is set, so the value of `AWS_ENDPOINT_URL` is passed to each, as to our
own store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analytics.grouped import grouped
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, optional
from pipeline.errors import ConfigError, JobError
from pipeline.storage.cleanup import cause

_GROUP_BYTES = 32 * 2**20
"""Size in memory of what is appended to Iceberg at a time."""
_APPLICATION = "speech-emotion-pipeline"


def publish(rows: Rows, form: str, table: str) -> Iterator[Plan]:
    """Commit every finished run that the table lacks, and create the table if necessary.

    Args:
        form: delta, iceberg or lance.
        table: a folder or URI; for Iceberg namespace.name in the catalog that pyiceberg is configured for.
    Yields: each run after its commit. In the table, embeddings are float32 and partition columns are ordinary columns.
    Tables that are created here have the partition columns of the output as their partitions, except Lance, which has none.
    Memory: streamed batches; for Iceberg groups of batches.
    Raises: ConfigError when the package is not installed, or the table cannot be used; JobError when a commit fails.
    """
    commit = _FORMATS[form](rows, table)
    for plan in rows.plans:
        rows.require_no_erasure_since()
        if commit(plan):
            yield plan


Commit = Callable[[Plan], bool]
"""Function that commits one run. Returns False when the table already has it."""


def storage_options(table: str) -> dict[str, str]:
    """Return the storage options of delta-rs and Lance: a custom S3 endpoint; empty for other tables."""
    endpoint = _endpoint()
    if not endpoint or not table.startswith(("s3://", "s3a://")):
        return {}
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _stream(rows: Rows, plan: Plan) -> pa.RecordBatchReader:
    """Read the parts of a run one after the other: a scanner of all reads hundreds of MB of embeddings ahead."""
    utterances = rows.of([plan.plan]).utterances()
    batches = (batch for part in utterances.get_fragments() for batch in part.to_batches(schema=utterances.schema))
    return pa.RecordBatchReader.from_batches(utterances.schema, batches)


def _runs(batches: Iterable[pa.RecordBatch]) -> set[str]:
    """Return the runs in a table, from one pass over `run_id` instead of one pass per run."""
    return {run for batch in batches for run in pc.unique(batch.column("run_id")).to_pylist()}


def _delta(rows: Rows, table: str) -> Commit:
    delta = optional("deltalake", extra="delta")
    partitions = [field.name for field in rows.partition_fields]
    stored = storage_options(table)
    try:  # read the log once, not once per run
        known = (
            delta.DeltaTable(table, storage_options=stored)
            if delta.DeltaTable.is_deltatable(table, storage_options=stored)
            else None
        )
    except (delta.exceptions.DeltaError, OSError) as error:
        raise ConfigError(f"{table} cannot be published to: {cause(error)}") from error

    def commit(plan: Plan) -> bool:
        application = f"{_APPLICATION}/{plan.plan}"
        if known is not None and known.transaction_version(application) is not None:
            return False
        once = delta.CommitProperties(app_transactions=[delta.Transaction(application, 1)])
        written: dict[str, Any] = {"mode": "append", "schema_mode": "merge", "commit_properties": once}
        try:
            if not delta.DeltaTable.is_deltatable(table, storage_options=stored):
                delta.DeltaTable.create(
                    table, rows.schema(), mode="ignore", partition_by=partitions, storage_options=stored
                )
            opened = delta.DeltaTable(table, storage_options=stored)
            if opened.transaction_version(application) is not None:
                return False
            delta.write_deltalake(opened, _stream(rows, plan), **written)
        except delta.exceptions.CommitFailedError as error:
            if delta.DeltaTable(table, storage_options=stored).transaction_version(application) is not None:
                return False  # another publisher was first
            raise JobError(f"{table}: {cause(error)}") from error
        except (delta.exceptions.DeltaError, OSError) as error:
            raise ConfigError(f"{table} cannot be published to: {cause(error)}") from error
        return True

    return commit


def _lance(rows: Rows, table: str) -> Commit:
    lance = optional("lance", extra="lance")
    stored = storage_options(table)

    def existing() -> Any:  # noqa: ANN401 - a LanceDataset, or None
        try:
            return lance.dataset(table, storage_options=stored)
        except ValueError:  # the table does not exist
            return None

    try:
        opened = existing()
        published = _runs(opened.to_batches(columns=["run_id"])) if opened is not None else set()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{table} cannot be published to: {cause(error)}") from error

    def commit(plan: Plan) -> bool:
        if plan.plan in published:
            return False
        try:
            opened = existing()
            if opened is None:
                lance.write_dataset(_stream(rows, plan), table, mode="create", storage_options=stored)
            else:
                lance.write_dataset(_stream(rows, plan), opened, mode="append")
        except (ValueError, OSError) as error:
            raise ConfigError(f"{table} cannot be published to: {cause(error)}") from error
        return True

    return commit


def _iceberg(rows: Rows, table: str) -> Commit:
    optional("pyiceberg", extra="iceberg")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import CommitFailedException, RESTError

    try:
        catalog = load_catalog(**catalog_properties())
        catalog.create_namespace_if_not_exists(table.rpartition(".")[0])
        opened = _iceberg_table(catalog, rows, table)
        published = _runs(opened.scan(selected_fields=("run_id",)).to_arrow_batch_reader())
    except (ValueError, RESTError, OSError) as error:
        raise ConfigError(f"{table} cannot be published to: {cause(error)}") from error

    def commit(plan: Plan) -> bool:
        if plan.plan in published:
            return False
        try:
            # pyiceberg does not stream into partitions: several appends, of which a reader sees all or none
            with opened.transaction() as transaction:
                for group in grouped(_stream(rows, plan), _GROUP_BYTES):
                    transaction.append(group)
        except CommitFailedException as error:
            raise JobError(f"{table}: {cause(error)}") from error
        return True

    return commit


def _iceberg_table(catalog: Any, rows: Rows, table: str) -> Any:  # noqa: ANN401 - a Catalog and a Table
    """Return the table; create it with the partitions of the output if it does not exist."""
    from pyiceberg.exceptions import TableAlreadyExistsError

    if not catalog.table_exists(table):
        try:
            with (
                catalog.create_table_transaction(table, rows.schema()) as transaction,
                transaction.update_spec() as partitions,
            ):
                for field in rows.partition_fields:
                    partitions.add_identity(field.name)
        except TableAlreadyExistsError:
            pass  # another publisher was first
    return catalog.load_table(table)


def catalog_properties() -> dict[str, str]:
    """Return the S3 properties that the environment sets and the catalog's own configuration does not.

    Without a region, pyiceberg would request it from Amazon, even for another endpoint.
    """
    from pyiceberg.utils.config import Config

    config = Config()
    configured = config.get_catalog_config(config.get_default_catalog_name()) or {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = _endpoint()
    properties = {"s3.endpoint": endpoint, "s3.region": region or ("us-east-1" if endpoint else None)}
    return {name: value for name, value in properties.items() if value and name not in configured}


_FORMATS: dict[str, Callable[[Rows, str], Commit]] = {"delta": _delta, "iceberg": _iceberg, "lance": _lance}
FORMATS = tuple(_FORMATS)

"""The rows of an output's plans as tables that DuckDB can query.

Arrow reads the files, so every store that the pipeline writes to can be read, with the types of the plans: a partition
value `007` stays text, and a column, or a key of a nested column, that a plan lacks is null there. DuckDB runs the queries
and opens no file itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from pipeline.config.columns import SPEAKER_ID, optional_names, with_optional
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.compatibility import dataset_settings, read_columns
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, load_plan, load_plans
from pipeline.dataset.publish import is_published
from pipeline.dataset.tombstones import require_no_erasure
from pipeline.errors import ConfigError, JobError, did_you_mean
from pipeline.layout import RUNS, UTTERANCES, plan_name, rejects_key
from pipeline.manifest.growth import asked_type, path_type
from pipeline.manifest.rejects import reject_schema
from pipeline.redaction import without_query
from pipeline.schema import ROW_SCHEMA, utterance_schema
from pipeline.storage.cleanup import cause, reaching
from pipeline.storage.filesystem import resolve
from pipeline.storage.store import Store
from pipeline.storage.temporary import temporary_folder

if TYPE_CHECKING:
    import duckdb


TIME_ZONE = "UTC"
"""Zone of dates and hours in SQL, so that no result depends on the machine's zone."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of an output's plans.

    Attributes:
        plans: the plans whose rows are read, oldest first.
        unfinished: names of the plans that are not finished and published; `plans` has them only if they were requested.
        parts: plan name and shard number to the key of the part.
        listed: number of plans that the output had, erasures included.
        extra: pass-through columns of all plans that are read, also when `of` has left some out, with every key that a struct
            has in any of them.
    """

    store: Store
    plans: tuple[Plan, ...]
    unfinished: tuple[str, ...]
    parts: Mapping[str, Mapping[int, str]]
    extra: pa.Schema
    listed: int = 0

    def of(self, names: Iterable[str]) -> Rows:
        """Return a selection of the plans. Raises: ConfigError for a plan that does not exist or is not finished."""
        wanted, known, unfinished = dict.fromkeys(names), {plan.plan for plan in self.plans}, set(self.unfinished)
        for name in wanted:
            if name in unfinished:
                raise ConfigError(f"run {name} is not finished: run its jobs.annotate command again first")
            if name not in known:
                raise ConfigError(f"{without_query(self.store.root)} has no run {name}{did_you_mean(name, known)}")
        return replace(self, plans=tuple(plan for plan in self.plans if plan.plan in wanted))

    def require_no_erasure_since(self) -> None:
        """Check that no erasure has begun since the plans were listed, before files that derive from rows are written.

        Costs one GET, and one for each new plan. Raises: JobError.
        """
        for number in itertools.count(self.listed + 1):
            try:
                plan = load_plan(self.store, plan_name(number))
            except FileNotFoundError:
                return
            if plan.erasure is not None:
                raise JobError(
                    f"erasure {plan.plan} began meanwhile, and the rows that were read may be erased: run this again"
                )

    @property
    def has_words(self) -> bool:
        """Return whether the output keeps texts: see `--texts`."""
        return all(plan.settings.texts == "keep" for plan in self.plans)

    @property
    def has_speakers(self) -> bool:
        """Return whether `speaker_id` is a column of ours, not of the manifest: see `--turns`."""
        return any(SPEAKER_ID in optional_names(plan.settings) for plan in self.plans)

    @property
    def partition_fields(self) -> list[pa.Field]:
        """Return the columns that are only in the path, with types that Arrow can parse from a path."""
        if not self.plans:
            return []
        fields = [
            (self.extra if name in self.extra.names else ROW_SCHEMA).field(name)
            for name in self.plans[0].settings.partition_by
        ]
        return [field.with_type(path_type(field.type)) for field in fields]

    def schema(self) -> pa.Schema:
        """Return the schema of `utterances`: pass-through columns typed by `asked_type`, embeddings in float32."""
        widths = {name: width for plan in self.plans for name, width in plan.embedding_widths.items()}
        version = self.plans[0].settings.schema_version if self.plans else SCHEMA_VERSION
        written = utterance_schema(widths, "float32", self._asked(), version=version)
        written = with_optional(written, self.plans[0].settings) if self.plans else written
        others = [field for field in self.partition_fields if field.name not in written.names]
        return pa.schema([*written, *others])

    def _asked(self) -> list[pa.Field]:
        paths = {field.name: field for field in self.partition_fields}
        return [paths.get(field.name, field.with_type(asked_type(field.type))) for field in self.extra]

    def part_keys(self) -> list[str]:
        """Return the keys of the parts, in the order of plans and shards."""
        return [key for plan in self.plans for _, key in sorted(self.parts[plan.plan].items())]

    def planned(self) -> ds.Dataset:
        """Return the planned manifest rows, as they were read."""
        files = [file for plan in self.plans for file, _ in plan.files]
        return dataset(self.store, RUNS, files, ROW_SCHEMA)

    def utterances(self) -> ds.Dataset:
        """Return the utterances of these plans. Opens no file yet."""
        partitioning = ds.partitioning(pa.schema(self.partition_fields), flavor="hive")
        return dataset(self.store, UTTERANCES, self.part_keys(), self.schema(), partitioning)

    def rejects(self) -> ds.Dataset:
        """Return the rejects of these plans, including those of planning."""
        existing = {entry.key for entry in self.store.list("rejects")}
        keys = [key for plan in self.plans if (key := rejects_key(plan.plan)) in existing]
        extra = [field.with_type(asked_type(field.type)) for field in self.extra]
        return dataset(self.store, "rejects", keys, reject_schema(extra))


def column_path(name: str, rows: Rows) -> tuple[str, ...]:
    """Return the path to a column, or to a field of a struct: `by_model.words.emotion`.

    Raises: ConfigError when there is none of this name.
    """
    schema = rows.schema()
    if name in schema.names:
        return (name,)
    path, known = tuple(name.split(".")), [field.name for field in schema]
    kind: pa.DataType = pa.struct(schema)
    for depth, step in enumerate(path):
        known = [".".join([*path[:depth], field.name]) for field in kind] if pa.types.is_struct(kind) else []
        if ".".join(path[: depth + 1]) not in known:
            near = did_you_mean(".".join(path[: depth + 1]), known)
            raise ConfigError(f"{without_query(rows.store.root)} has no column {name!r}{near}")
        kind = kind.field(step).type
    return path


CURRENT_REJECTS = """FROM rejects ANTI JOIN utterances USING (recording_id)
QUALIFY recording_id IS NULL OR run_id = max(run_id) OVER (PARTITION BY recording_id)"""
"""SQL for the rejects that are current: no run has annotated the row since, and no later run has rejected it again."""


def current_rejects(rows: Rows) -> pa.Table:
    """Return the rejects that are current, see `CURRENT_REJECTS`; `rejects/` is a log of all.

    Costs: reading the rejects, and the recording ids of all utterances if there are any.
    """
    rejects = rows.rejects().to_table()
    if not rejects.num_rows:
        return rejects
    with asking(rejects=rejects, utterances=rows.utterances()) as connection:
        return connection.sql(CURRENT_REJECTS).to_arrow_table().cast(rejects.schema)


def finished_rows(store: Store) -> Rows:
    """List the finished plans of an output and their parts.

    Raises: ConfigError when there is no output or it cannot be read; JobError when a published plan lacks parts.
    """
    rows = committed_rows(store)
    return replace(
        rows,
        plans=(published := tuple(plan for plan in rows.plans if plan.plan not in rows.unfinished)),
        extra=read_columns(plan.copied for plan in published),
    )


def committed_rows(store: Store) -> Rows:
    """List all plans of an output, finished or not, and the parts that exist.

    Raises: ConfigError when there is no output or it cannot be read; JobError when a published plan lacks parts.
    """
    with reaching(store):
        plans = load_plans(store)
        if not plans and dataset_settings(store) is None:
            raise ConfigError(f"no output of this pipeline exists at {without_query(store.root)}")
        require_no_erasure(store, plans)
        listed = len(plans)
        plans = [plan for plan in plans if plan.erasure is None]
        unfinished = tuple(plan.plan for plan in plans if not is_published(store, plan))
        parts = committed_parts(store, plans)
    for plan in plans:
        missing = plan.num_shards - len(parts[plan.plan])
        if missing and plan.plan not in unfinished:
            raise JobError(
                f"run {plan.plan} is published, and {missing:,} of its files are missing; "
                f"see python -m jobs.verify {without_query(store.root)}"
            )
    return Rows(store, tuple(plans), unfinished, parts, read_columns(plan.copied for plan in plans), listed)


def dataset(
    store: Store, folder: str, keys: Sequence[str], schema: pa.Schema, partitioning: ds.Partitioning | None = None
) -> ds.Dataset:
    """Return Parquet files of a store as one Arrow dataset; a column that a file lacks is null. Opens no file yet."""
    if not keys:
        return ds.dataset(schema.empty_table())
    filesystem, root = resolve(store.root)
    arrow = (
        fs.LocalFileSystem()
        if isinstance(filesystem, LocalFileSystem)
        else fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    )
    # folders above this one may look like partitions without being any
    options = ds.FileSystemFactoryOptions(partition_base_dir=f"{root}/{folder}", partitioning=partitioning)
    paths = [f"{root}/{key}" for key in keys]
    return ds.FileSystemDatasetFactory(arrow, paths, ds.ParquetFileFormat(), options).finish(schema)


@contextmanager
def reading() -> Iterator[None]:
    """Turn Arrow's errors while reading rows into JobError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"cannot read the rows: {cause(error)}") from error


@contextmanager
def asking(time_zone: str | None = TIME_ZONE, **tables: Any) -> Iterator[duckdb.DuckDBPyConnection]:  # noqa: ANN401 - of Arrow
    """Open a DuckDB connection to the given tables; it can open no other file.

    Data that does not fit into memory is spilled to a temporary folder.

    Args:
        time_zone: zone in which SQL takes the day or hour of a timestamp with a zone; None for the machine's.
        tables: tables, datasets and readers of Arrow, by their names in SQL.
    Raises: ConfigError for SQL that cannot be run; JobError for files that cannot be read.
    """
    import duckdb

    with temporary_folder("spill-") as spill:
        connection = duckdb.connect(config={"temp_directory": str(spill)})
        try:
            connection.execute("SET enable_external_access = false")
            if time_zone is not None:
                connection.execute(f"SET TimeZone = '{time_zone}'")
            for name, table in tables.items():
                connection.register(name, table)
            with reading():
                yield connection
        except duckdb.Error as error:
            if "reading the stream" in str(error):  # DuckDB 2.0's message for an exception raised by Arrow
                raise JobError(f"cannot read the rows: {cause(error)}") from error
            raise ConfigError(f"the query cannot be run on the rows: {cause(error)}") from error
        finally:
            connection.close()


def optional(package: str, *, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import a package of an optional extra. Raises: ConfigError with the install command."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {package}, which is not installed: pip install -e '.[{extra}]'") from error


def quoted(name: str) -> str:
    """Quote a column name for SQL."""
    return '"' + name.replace('"', '""') + '"'

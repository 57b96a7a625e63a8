"""The immutable plan of a run: its rows, shards, settings and models.

Every file is written put-if-absent, at the paths defined in `layout.py`.

Plans are numbered. When two planners run at once, one creates `plan.json` under the next number; the other reads it, drops
the ids it holds, and plans again, so no id belongs to two plans. The loser's files are named by its token and never read.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audio.limits import LONGEST_SPAN_S
from pipeline.config.settings import Settings, canonical_hash
from pipeline.dataset.erasures import Erasure
from pipeline.dataset.packing import Packer, ShardFiles, ShardSize
from pipeline.dataset.texts import with_texts
from pipeline.errors import ConfigError
from pipeline.layout import PLAN_FILE, RUNS, plan_key, plan_name, planning_rejects_key, texts_file
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.manifest.policy import Policy
from pipeline.manifest.staging import Selection
from pipeline.pins import Pins, Role, Task, pins_document, pins_of
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.documents import FORMAT, create_json, read_document
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

_FOOTERS = 2
_SHARDS_AT_ONCE = 64
_TINY_SHARD_ROWS = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work, retry and commit, with the location of its rows in the plan.

    Attributes:
        texts_file: file with the texts of the rows; None when they are beside the other columns.
    """

    plan: str
    number: int
    file: str
    row_group: int
    texts_file: str | None = None
    texts_row_group: int = 0

    @property
    def name(self) -> str:
        """Return `<plan>-<shard>`, the stem of the part's file name."""
        return f"{self.plan}-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of `plan.json`.

    Attributes:
        files: shard files in order, each with its number of shards.
        audio_roots: absolute prefixes below which audio may be opened; empty for the store of the manifests, None in plans
            written before this was recorded.
        policy: conditions under which rows of the manifests were excluded.
        excluded: number of excluded rows by option.
        retries: number of rows that this plan takes over, because they were rejected, by the plan that had them.
        erasure: what is erased, if this is no run but an erasure; it has no rows then.
        erased: number of its rows that were erased, by erasure; `rows` and `rejects` are without them.
    """

    plan: str
    token: str
    created_at: str
    settings: Settings
    models: Pins
    embedding_widths: Mapping[str, int]
    manifests: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    rows: int
    rejects: int
    rejects_file: str | None
    rows_without_text: int
    audio_s: float
    extra_schema: str
    format: int = FORMAT
    audio_roots: tuple[str, ...] | None = None
    policy: Policy = field(default_factory=Policy)
    excluded: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    erasure: Erasure | None = None
    erased: Mapping[str, int] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """Return the hash of settings and models, which every receipt of this plan carries."""
        return canonical_hash([self.settings.document(), pins_document(self.models)])

    @property
    def extra(self) -> pa.Schema:
        """Return the pass-through columns with their types."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.extra_schema)))

    @property
    def copied(self) -> pa.Schema:
        """Return the pass-through columns that the utterances have: all but the turns, which would repeat in each."""
        return pa.schema([field for field in self.extra if field.name != self.settings.turns])

    @property
    def needs_asr(self) -> bool:
        """Return whether some row of the plan needs transcription or language detection."""
        return any(role.task is Task.ASR for role in self.models)

    def knows_language(self, language: str) -> bool:
        """Return whether the plan has an emotion model for a language."""
        return Role(Task.EMOTION, language) in self.models

    def document(self) -> dict[str, Any]:
        """Return the content of `plan.json`; fields that older plans lack are left out when unset."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.audio_roots is None:
            del fields["audio_roots"]
        if not self.policy:
            del fields["policy"], fields["excluded"]
        else:
            fields["policy"] = self.policy.document()
        for name in ("retries", "erased", "erasure"):
            if not fields[name]:
                del fields[name]
        if self.erasure is not None:
            fields["erasure"] = self.erasure.document()
        return {**fields, "settings": self.settings.document(), "models": pins_document(self.models)}

    @property
    def named_files(self) -> set[str]:
        """Return the keys of the files that belong to the plan; those of texts may have been deleted."""
        shards = [shard for shard, _ in self.files]
        rejects = [] if self.rejects_file is None else [self.rejects_file]
        if self.erasure is not None:
            return {self.erasure.file}
        return {*shards, *rejects, *(() if self.settings.texts == "keep" else map(texts_file, shards))}

    @property
    def num_shards(self) -> int:
        """Return the number of parts that the finished plan has."""
        return sum(count for _, count in self.files)

    def shards(self) -> Iterator[Shard]:
        """Yield every shard, in order."""
        number = 0
        for file, count in self.files:
            for row_group in range(count):
                yield self._shard(number, file, row_group)
                number += 1

    def shard(self, number: int) -> Shard:
        """Return one shard by its number. Raises: IndexError."""
        row_group = number
        for file, count in self.files:
            if row_group < count:
                return self._shard(number, file, row_group)
            row_group -= count
        raise IndexError(number)

    def _shard(self, number: int, file: str, row_group: int) -> Shard:
        texts = None if self.settings.texts == "keep" else texts_file(file)
        return Shard(self.plan, number, file, row_group, texts, row_group)


def load_plans(store: Store) -> list[Plan]:
    """Load every plan of the dataset, oldest first. Costs a listing, and one GET per plan, several at once."""
    return [
        plan() for plan in read_ahead(partial(load_plan, store), plan_names(entry.key for entry in store.list(RUNS)))
    ]


def plan_names(keys: Iterable[str]) -> list[str]:
    """Return the names of the plans in a listing, up to the first number without a plan."""
    numbers = {int(match[1]) for key in keys if (match := PLAN_FILE.fullmatch(key))}
    return list(map(plan_name, itertools.takewhile(numbers.__contains__, itertools.count(1))))


def load_plan(store: Store, name: str) -> Plan:
    """Load one plan by its number. Raises: FileNotFoundError; ConfigError naming a `plan.json` that cannot be read."""
    content = read_document(store, plan_key(name))
    try:
        return plan_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{store.root}/{plan_key(name)} cannot be read: {type(error).__name__} {error}") from error


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Parse the content of a `plan.json`. Raises: KeyError, TypeError or ValueError when it is not a plan."""
    files = tuple((file, count) for file, count in document["files"])
    tuples = {name: tuple(document[name]) for name in ("manifests", "audio_roots") if name in document}
    typed: dict[str, Any] = {"settings": Settings.of(document["settings"]), "models": pins_of(document["models"])}
    if "policy" in document:
        typed["policy"] = Policy.of(document["policy"])
    if "erasure" in document:
        typed["erasure"] = Erasure.of(document["erasure"])
    return Plan(**{**document, **tuples, **typed, "files": files})


def read_shard(store: Store, shard: Shard) -> pa.Table:
    """Read the rows of one shard: `ROW_SCHEMA` and the pass-through columns. Texts that were deleted are null."""
    with _open_parquet(store, shard.file) as file:
        rows = file.read_row_group(shard.row_group)
    if shard.texts_file is None:
        return rows
    return with_texts(store, shard.texts_file, shard.texts_row_group, rows)


def read_shards(store: Store, shards: Iterable[Shard], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read the rows of several shards, in the given order, with some columns or all; texts that are apart are null.

    Opens a file once for consecutive shards and reads `_SHARDS_AT_ONCE` of them together, which are few requests.
    """
    for file, of_file in itertools.groupby(shards, key=lambda shard: shard.file):
        with _open_parquet(store, file) as parquet:
            while numbers := [shard.row_group for shard in itertools.islice(of_file, _SHARDS_AT_ONCE)]:
                rows, start = parquet.read_row_groups(numbers, columns and list(columns)), 0
                for number in numbers:
                    count = parquet.metadata.row_group(number).num_rows
                    yield rows.slice(start, count)
                    start += count


def read_rejects(store: Store, plan: Plan) -> pa.Table | None:
    """Read the rows rejected while planning; None if there are none."""
    if not plan.rejects_file:
        return None
    with _open_parquet(store, plan.rejects_file) as file:
        return file.read()


@contextmanager
def _open_parquet(store: Store, key: str) -> Iterator[pq.ParquetFile]:
    with store.open(key) as file:
        footer = _footer(_PlanFile(key, file.seek(0, io.SEEK_END), store))
        file.seek(0)
        with pq.ParquetFile(file, metadata=footer, pre_buffer=True) as parquet:
            yield parquet


@dataclass(frozen=True, slots=True)
class _PlanFile:
    """A Parquet file of a plan. Its key contains the plan's token, so it names the same content in every store.

    An erasure replaces it by a file of another size; `forget_footers` is for the process that does so.
    """

    key: str
    size_bytes: int
    store: Store = field(compare=False)


@lru_cache(maxsize=_FOOTERS)
def _footer(file: _PlanFile) -> pq.FileMetaData:
    """Return a footer, kept because a file's shards are read one by one, and parsing it takes about 10 ms."""
    with file.store.open(file.key) as opened:
        return pq.read_metadata(opened)


def forget_footers() -> None:
    """Forget the footers of plan files, after one was replaced."""
    _footer.cache_clear()


def planned_ids(store: Store, plan: Plan) -> Iterator[Keys]:
    """Read the ids of a plan, in batches."""
    for file, _ in plan.files:
        with _open_parquet(store, file) as parquet:
            for rows in parquet.iter_batches(columns=["recording_id"]):
                yield id_keys(rows["recording_id"].to_pylist())


def write_plan(
    store: Store,
    number: int,
    selection: Selection,
    *,
    settings: Settings,
    models: Pins,
    embedding_widths: Mapping[str, int],
    manifests: Iterable[str],
    size: ShardSize,
    needs_text: bool,
    audio_roots: tuple[str, ...] | None = None,
    retries: Mapping[str, int] | None = None,
) -> Plan | None:
    """Write the selection as plan `number`. Returns: None when another planner created that number first.

    Memory: the rows of open shards, at most `_OPEN_ROWS`, and one shard file.
    """
    name, token = plan_name(number), uuid.uuid4().hex[:12]
    extra = selection.staging.extra
    files = ShardFiles(store, name, token, pa.schema([*ROW_SCHEMA, *extra]), settings.texts != "keep")
    packer = Packer(files, tuple(dict.fromkeys((*settings.partition_by, "language"))), size)
    rows, without_text, audio_s = 0, 0, 0.0
    for table in selection.tables():
        packer.add(table)
        rows += table.num_rows
        without_text += table["text"].null_count if needs_text else 0
        audio_s += float(np.clip(table["duration_s"].fill_null(0.0).to_numpy(), 0.0, LONGEST_SPAN_S).sum())
    packer.finish()
    rejects = list(selection.rejects())
    rejects_file = planning_rejects_key(name, token) if rejects else None
    if rejects_file:
        store.put_if_absent(rejects_file, parquet_bytes(pa.concat_tables(rejects)))
    plan = Plan(
        plan=name,
        token=token,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        settings=settings,
        models=models,
        embedding_widths=embedding_widths,
        manifests=tuple(manifests),
        files=tuple(files.files),
        rows=rows,
        rejects=sum(table.num_rows for table in rejects),
        rejects_file=rejects_file,
        rows_without_text=without_text,
        audio_s=audio_s,
        extra_schema=stored_schema(extra),
        audio_roots=audio_roots,
        policy=selection.staging.policy,
        excluded=selection.excluded if selection.staging.policy else {},
        retries=retries or {},
    )
    return plan if create_json(store, plan_key(name), plan.document(), mine=("token", token)) else None


def stored_schema(extra: pa.Schema) -> str:
    """Return `extra_schema` for pass-through columns."""
    return base64.b64encode(extra.serialize().to_pybytes()).decode()


def parquet_bytes(table: pa.Table) -> bytes:
    """Serialise a small table as one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def tiny_shards_warning(plan: Plan) -> str | None:
    """Return a warning when partitioning by too many values makes files tiny, or None."""
    if not plan.settings.partition_by or plan.num_shards <= 1 or plan.rows / plan.num_shards >= _TINY_SHARD_ROWS:
        return None
    columns = ", ".join(plan.settings.partition_by)
    return (
        f"partitioning by {columns} gives {plan.num_shards:,} files of {plan.rows / plan.num_shards:.1f} rows on average; "
        "readers will be slow. Partition by a column with fewer values"
    )

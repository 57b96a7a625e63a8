"""Compaction: a second copy of finished runs in few large files, with the same commit protocol.

    compacted/_generations/<n>/plan.json     parts of each file; the generation exists once this file does
    compacted/<partition>/<n>-<file>.parquet
    compacted/_generations/<n>/_SUCCESS      all files exist, and contain the rows of their parts

The small files are kept. Replacing them would need deletes, and readers of `utterances/` would see rows twice before
the last delete, or not at all after it. So readers choose a folder; in either, every row occurs at most once at any
time. A finished run belongs to one generation, generations are numbered with put-if-absent, and their files have fixed
names: the next compaction completes a killed one, and concurrent compactions write the same files.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.columns import with_optional
from pipeline.config.further import BY_MODEL
from pipeline.dataset.compatibility import read_columns
from pipeline.dataset.parts import encodings, receipt_of
from pipeline.dataset.reader import Rows
from pipeline.errors import JobError
from pipeline.layout import COMPACTED, PLAN, SUCCESS, UTTERANCES, generation_key, plan_name
from pipeline.schema import DIMENSIONS, utterance_schema
from pipeline.storage.documents import FORMAT, create_json, read_document
from pipeline.storage.store import Store

_ROW_GROUP_BYTES = 32 * 2**20
"""Size of a row group in memory: a reader's memory during a scan, and large enough for object stores."""


@dataclass(frozen=True, slots=True)
class Merge:
    """One large file and its parts, in order."""

    key: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """Plan of one compaction: the finished plans it merges, and the files it writes."""

    name: str
    token: str
    plans: tuple[str, ...]
    files: tuple[Merge, ...]
    format: int = FORMAT

    @property
    def success_key(self) -> str:
        """Return the key of the generation's success marker."""
        return generation_key(self.name, SUCCESS)


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of one generation: numbers of rows and of merged parts."""

    generation: Generation
    rows: int
    parts: int


def compact(rows: Rows, *, target_bytes: int) -> Iterator[Compacted]:
    """Complete unfinished generations, then create one from the finished plans that are in none.

    Memory: twice a file of about `target_bytes`, and one part.
    Raises: JobError when a part is damaged, or its number of rows differs from its receipt.
    """
    store, sizes = rows.store, {entry.key: entry.size_bytes for entry in rows.store.list(UTTERANCES)}
    while True:
        generations = load_generations(store)
        for generation in generations:
            if not is_done(store, generation):
                yield _execute(rows, generation)
        held = {plan for generation in generations for plan in generation.plans}
        new = [plan.plan for plan in rows.plans if plan.plan not in held]
        if not new:
            return
        generation = _plan(rows.of(new), plan_name(len(generations) + 1), sizes, target_bytes)
        create_json(store, generation_key(generation.name, PLAN), asdict(generation), mine=("token", generation.token))


def load_generations(store: Store) -> list[Generation]:
    """Return all generations, finished or not, oldest first."""
    generations: list[Generation] = []
    while True:
        try:
            document = read_document(store, generation_key(plan_name(len(generations) + 1), PLAN))
        except FileNotFoundError:
            return generations
        files = tuple(Merge(merge["key"], tuple(merge["parts"])) for merge in document["files"])
        generations.append(Generation(**{**document, "plans": tuple(document["plans"]), "files": files}))


def is_done(store: Store, generation: Generation) -> bool:
    """Return whether a generation is finished, that is, whether all its files exist."""
    try:
        store.read(generation.success_key)
    except FileNotFoundError:
        return False
    return True


def _plan(rows: Rows, name: str, sizes: Mapping[str, int], target_bytes: int) -> Generation:
    """Assign the parts of each partition to files of the target size, in the order of plans and shards."""
    together: dict[str, list[list[str]]] = defaultdict(lambda: [[]])
    filled: dict[str, int] = defaultdict(int)
    for key in rows.part_keys():
        folder = key.rpartition("/")[0].removeprefix(UTTERANCES)
        if filled[folder] and filled[folder] + sizes[key] > target_bytes:
            together[folder].append([])
            filled[folder] = 0
        together[folder][-1].append(key)
        filled[folder] += sizes[key]
    files = [
        Merge(f"{COMPACTED}{folder}/{name}-{number:05d}.parquet", tuple(parts))
        for folder, merges in together.items()
        for number, parts in enumerate(merges)
    ]
    return Generation(name, uuid.uuid4().hex, tuple(plan.plan for plan in rows.plans), tuple(files))


def _execute(rows: Rows, generation: Generation) -> Compacted:
    store = rows.store
    existing = {entry.key for entry in store.list(COMPACTED)}
    schema = _schema(rows.of(generation.plans))
    for merge in generation.files:
        if merge.key not in existing:
            content = _merged(store, merge, _with_scales(store, merge, schema))
            rows.require_no_erasure_since()
            store.put_if_absent(merge.key, content)
    counted = {"rows": 0, "parts": sum(len(merge.parts) for merge in generation.files)}
    for merge in generation.files:
        with store.open(merge.key) as file:
            counted["rows"] += pq.read_metadata(file).num_rows
    store.put_if_absent(generation.success_key, json.dumps(counted).encode())
    return Compacted(generation, **counted)


def _schema(rows: Rows) -> pa.Schema:
    """Return the schema of the large files: the columns shared by all plans, and all their pass-through columns."""
    first = rows.plans[0]
    extra = read_columns(plan.copied for plan in rows.plans)
    version = first.settings.schema_version
    fields = utterance_schema(first.embedding_widths, first.settings.embedding_dtype, extra, version=version)
    fields = with_optional(fields, first.settings)
    return pa.schema([field for field in fields if field.name not in first.settings.partition_by])


def _with_scales(store: Store, merge: Merge, schema: pa.Schema) -> pa.Schema:
    """Return the schema with the model's own scale of each dimension in the field's metadata, as the parts have it.

    Reads the footer of the first part, and of the others only if that has a scale.
    """
    scales: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key in merge.parts:
        with store.open(key) as file:
            part = pq.read_schema(file)
        for path, field in _dimensions(part):
            scales[path].update(filter(None, [(field.metadata or {}).get(b"scale", b"").decode()]))
        if not any(scales.values()):
            break
    return pa.schema([_scaled(field, (field.name,), scales) for field in schema])


def _dimensions(schema: pa.Schema) -> Iterator[tuple[tuple[str, ...], pa.Field]]:
    """Yield the dimensions of the main model and of the further ones, each with its path."""
    yield from (((name,), schema.field(name)) for name in DIMENSIONS if name in schema.names)
    for model in schema.field(BY_MODEL).type if BY_MODEL in schema.names else ():
        yield from (((BY_MODEL, model.name, name), model.type.field(name)) for name in DIMENSIONS)


def _scaled(field: pa.Field, path: tuple[str, ...], scales: Mapping[tuple[str, ...], set[str]]) -> pa.Field:
    """Return a field with the scale of each dimension at or below its path in the dimension's metadata."""
    if any(texts and scaled[: len(path)] == path and scaled != path for scaled, texts in scales.items()):
        return field.with_type(pa.struct([_scaled(each, (*path, each.name), scales) for each in field.type]))
    if not scales.get(path):
        return field
    return field.with_metadata({**(field.metadata or {}), "scale": " and ".join(sorted(scales[path]))})


def _merged(store: Store, merge: Merge, schema: pa.Schema) -> bytes:
    """Return the rows of the parts, in order, as one file."""
    sink = pa.BufferOutputStream()
    waiting: list[pa.Table] = []
    waiting_bytes = 0  # a running sum: summing all tables again for each part would be quadratic
    with pq.ParquetWriter(sink, schema, **encodings(schema)) as writer:
        for key in merge.parts:
            table = _read_part(store, key, schema)
            waiting.append(table)
            waiting_bytes += table.nbytes
            if waiting_bytes >= _ROW_GROUP_BYTES:
                _write_group(writer, waiting)
                waiting_bytes = 0
        if waiting:
            _write_group(writer, waiting)
        lineage: dict[str, Any] = {"parts": list(merge.parts)}
        writer.add_key_value_metadata({b"speech_emotion.compacted": json.dumps(lineage).encode()})
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _write_group(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
    table = pa.concat_tables(waiting)
    writer.write_table(table, row_group_size=max(1, table.num_rows))
    waiting.clear()


def _read_part(store: Store, key: str, schema: pa.Schema) -> pa.Table:
    """Read one part, verifying page checksums, with the columns of the large file; missing ones are null."""
    try:
        with pq.ParquetFile(pa.BufferReader(store.read(key)), page_checksum_verification=True) as file:
            part, receipt = file.read(), receipt_of(file.metadata.metadata)
        columns = [
            part[field.name].cast(field.type)  # other versions wrote texts as dictionaries
            if field.name in part.column_names
            else pa.nulls(part.num_rows, field.type)
            for field in schema
        ]
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise JobError(f"{store.root}/{key} cannot be read: {error}; see python -m jobs.verify --deep") from error
    if part.num_rows != receipt.utterances:
        raise JobError(
            f"{store.root}/{key} has {part.num_rows:,} rows, but its receipt says {receipt.utterances:,}; "
            "see python -m jobs.verify --deep"
        )
    return pa.table(columns, schema=schema)

"""Replacement of the files of a run by files without erased rows: parts, plan, rejects, report. Each step can be repeated."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.erase.protocol import Changes, json_bytes, without
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.packing import OpenFile
from pipeline.dataset.parts import (
    Receipt,
    committed_parts,
    ids_sha256,
    new_attempt,
    part_bytes,
    read_receipts,
    receipt_of,
    without_receipt,
)
from pipeline.dataset.plan import Plan, Shard, forget_footers, parquet_bytes, read_shards
from pipeline.dataset.tally import Tally
from pipeline.errors import JobError
from pipeline.layout import (
    CORPUS,
    INDEX,
    PAGE,
    REJECTS,
    REPORT,
    RUNS,
    SHARD_FILE,
    TEMPORARY,
    UTTERANCES,
    attempts_folder,
    plan_key,
    rejects_key,
    run_key,
)
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.rejects import reject_keys
from pipeline.manifest.staging import Mask
from pipeline.storage.cleanup import abort, uploads, walk
from pipeline.storage.store import Store


def rewrite(changes: Changes, entry: Plan, plans: list[Plan], gone: Tombstones) -> Iterator[str]:
    """Erase rows from the runs that have them. Yields: the name of each run, when it is done.

    Args:
        gone: the tombstones of this erasure.
    Memory: one shard file and one part.
    """
    erasure = entry.erasure
    affected = [plan for plan in plans if erasure is not None and plan.plan in erasure.plans]
    parts = committed_parts(changes.store, affected)
    for plan in affected:
        _parts_and_shards(changes, plan, parts[plan.plan], gone)
        _planning_rejects(changes, plan, gone)
        smaller = without(plan, entry)
        changes.replace(plan_key(plan.plan), json_bytes(smaller.document()))
        _results(changes, smaller, parts[plan.plan], gone)
        yield plan.plan
    _leftovers(changes, entry, plans)
    _kept_ids(changes, gone)


def _parts_and_shards(changes: Changes, plan: Plan, parts: Mapping[int, str], gone: Tombstones) -> None:
    for file, of_file in itertools.groupby(plan.shards(), key=lambda shard: shard.file):
        writer, is_changed = OpenFile(_schema(changes.store, file)), False
        shards = list(of_file)
        for shard, rows in zip(shards, read_shards(changes.store, shards), strict=True):
            keep = ~gone.matches(id_keys(rows["recording_id"].to_pylist()))
            if not keep.all():
                is_changed = True
                _part(changes, shard, parts, rows, keep)
            writer.add(rows.filter(pa.array(keep)))
        if is_changed:
            changes.replace(file, writer.content())
            forget_footers()


def _schema(store: Store, file: str) -> pa.Schema:
    with store.open(file) as opened:
        return pq.read_schema(opened)


def _part(changes: Changes, shard: Shard, parts: Mapping[int, str], rows: pa.Table, keep: Mask) -> None:
    """Replace the part of a shard, unless it was replaced before."""
    key = parts.get(shard.number)
    if key is None:
        raise JobError(f"shard {shard.name} of {changes.store.root} has no part; see python -m jobs.verify")
    with pq.ParquetFile(io.BytesIO(changes.store.read(key)), page_checksum_verification=True) as file:
        receipt = receipt_of(file.metadata.metadata)
        remaining = rows.filter(pa.array(keep))
        if receipt.ids_sha256 == ids_sha256(remaining):
            return
        if receipt.ids_sha256 != ids_sha256(rows):
            raise JobError(f"{changes.store.root}/{key} has other ids than its plan; see python -m jobs.verify")
        table = without_receipt(file.read())
    erased = set(rows.filter(pa.array(~keep))["recording_id"].to_pylist())
    table = table.filter(pa.array([name not in erased for name in table["recording_id"].to_pylist()], pa.bool_()))
    changes.replace(key, part_bytes(table, _receipt(receipt, table, remaining, keep)))


def _receipt(receipt: Receipt, table: pa.Table, remaining: pa.Table, keep: Mask) -> Receipt:
    """Return the receipt of a part without some of its rows; positions of rejects are those of the remaining rows."""
    places = np.cumsum(keep) - 1
    return dataclasses.replace(
        receipt,
        attempt=new_attempt(),
        rows=remaining.num_rows,
        utterances=table.num_rows,
        ids_sha256=ids_sha256(remaining),
        audio_s=float(np.nansum(table["duration_s"].fill_null(float("nan")).to_numpy())),
        rejects=tuple((int(places[row]), reject) for row, reject in receipt.rejects if keep[row]),
        stage_s=receipt.stage_s if remaining.num_rows else {},
        figures=receipt.figures if remaining.num_rows else {},
    )


def _planning_rejects(changes: Changes, plan: Plan, gone: Tombstones) -> None:
    if plan.rejects_file is None:
        return
    content = changes.store.read(plan.rejects_file)
    _reject_file(changes, plan.rejects_file, content, gone)


def _reject_file(changes: Changes, key: str, content: bytes, gone: Tombstones) -> None:
    """Replace a file of rejects; one that becomes empty stays, so that a late writer cannot create it again."""
    rejects = pq.read_table(pa.BufferReader(content))
    keep = ~(gone.matches(reject_keys(rejects)) | _named(rejects, gone))
    if not keep.all():
        changes.replace(key, parquet_bytes(rejects.filter(pa.array(keep))))


def _named(rejects: pa.Table, gone: Tombstones) -> Mask:
    names = rejects["recording_id"].to_pylist()
    given = np.array([name is not None for name in names], dtype=bool)
    mask = np.zeros(len(names), dtype=bool)
    mask[given] = gone.matches(id_keys(name for name in names if name is not None))
    return mask


def _results(changes: Changes, plan: Plan, parts: Mapping[int, str], gone: Tombstones) -> None:
    """Derive the rejects and the report again; delete what may quote rows: the page and notes of failed attempts."""
    store, rejects = changes.store, pa.table({"reason": pa.array([], pa.string())})
    with suppress(FileNotFoundError):
        _reject_file(changes, rejects_key(plan.plan), store.read(rejects_key(plan.plan)), gone)
        rejects = pq.read_table(pa.BufferReader(store.read(rejects_key(plan.plan))), columns=["reason"])
    with suppress(FileNotFoundError):
        report = json.loads(store.read(run_key(plan.plan, REPORT)))
        others = {name: value for name, value in report.items() if name not in ("retried", "erased")}
        tally = Tally.of(plan, sorted(parts), read_receipts(store, parts))
        derived = tally.document(rejects["reason"].to_pylist())
        changes.replace(run_key(plan.plan, REPORT), json_bytes({**others, **derived}))
    for entry in list(store.list(attempts_folder(plan.plan))):
        changes.remove(entry.key)
    changes.remove(run_key(plan.plan, PAGE))


def _kept_ids(changes: Changes, gone: Tombstones) -> None:
    """Delete the index of the plans, which a later job makes again, and take ids out of the nightly ids of the corpus."""
    for entry in list(changes.store.list(INDEX)):
        changes.remove(entry.key)
    for entry in list(changes.store.list(CORPUS)):
        ids = pq.read_table(pa.BufferReader(changes.store.read(entry.key)))
        keep = ~gone.matches(id_keys(ids["recording_id"].to_pylist()))
        if not keep.all():
            changes.replace(entry.key, parquet_bytes(ids.filter(pa.array(keep))))


def _after(plan: Plan, entry: Plan) -> Plan:
    is_affected = entry.erasure is not None and plan.plan in entry.erasure.plans
    return without(plan, entry) if is_affected else plan


def _leftovers(changes: Changes, entry: Plan, plans: list[Plan]) -> None:
    """Delete files that no plan names and that may have erased rows: their writers cannot commit any more.

    A planner that still runs writes under a later number.
    """
    named = entry.named_files | {file for plan in plans for file in _after(plan, entry).named_files}
    numbers = {plan.plan for plan in plans} | {entry.plan}
    folders = tuple(f"{folder}/" for folder in (UTTERANCES, REJECTS, *(f"{RUNS}/{number}" for number in numbers)))
    for upload in uploads(changes.store):
        if upload.key.startswith(folders):
            abort(changes.store, upload)
    files = [file.key for folder in (UTTERANCES, REJECTS, RUNS) for file in walk(changes.store, folder)]
    for key in files:
        match = SHARD_FILE.fullmatch(key)
        is_unnamed = match and match[1] in numbers and key not in named
        if is_unnamed or (key.startswith(folders) and TEMPORARY.fullmatch(key)):
            changes.remove(key)

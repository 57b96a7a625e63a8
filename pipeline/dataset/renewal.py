"""Renewal of pre-signed URLs in an unfinished plan: a plan may outlive the signatures in it.

The plan itself is not changed. A row whose id and URL appear in the current manifest with another query string is copied
into a shard file of this run, with only the query changed, and the workers read the shard from that file. The file is
beside the plan's files under a token that no plan names, so `jobs.prune` removes it as a leftover once it is old.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.packing import ShardFiles, without_texts
from pipeline.dataset.plan import Plan, Shard, read_shard
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.store import Store

_HTTP = "(?i)^https?://"
_HELD_ROWS = 200_000
"""Plan rows compared with the manifest at once; the manifest is read once per batch of this size."""


def renew(store: Store, plan: Plan, shards: Sequence[Shard], staging: Staging) -> list[Shard]:
    """Return the same shards; those with renewed signatures refer to a copy of their rows.

    Reads every shard once when the manifest has URLs with a query; otherwise costs nothing.
    """
    if next(_signed(staging), None) is None:
        return list(shards)
    files = ShardFiles(store, plan.plan, uuid.uuid4().hex[:12], pa.schema([*ROW_SCHEMA, *plan.extra]))
    renewed: list[Shard] = []
    held: list[tuple[Shard, pa.Table]] = []
    for shard in shards:
        held.append((shard, read_shard(store, shard)))
        if sum(rows.num_rows for _, rows in held) >= _HELD_ROWS:
            renewed += _renew(held, files, staging)
            held = []
    renewed += _renew(held, files, staging)
    files.close()
    return renewed


def _renew(held: Sequence[tuple[Shard, pa.Table]], files: ShardFiles, staging: Staging) -> Iterator[Shard]:
    known: dict[bytes, str] = {}
    for _, rows in held:
        behind = rows.filter(pc.match_substring_regex(rows["audio"], _HTTP))
        known |= zip(id_keys(behind["recording_id"].to_pylist()).tolist(), behind["audio"].to_pylist(), strict=True)
    fresh: dict[bytes, str] = {}
    for ids, uris in _signed(staging):
        for key, uri in zip(id_keys(ids).tolist(), uris, strict=True):
            planned = known.get(key)
            if planned is not None and uri != planned and _without_signature(uri) == _without_signature(planned):
                fresh[key] = uri
    for shard, rows in held:
        keys, uris = id_keys(rows["recording_id"].to_pylist()).tolist(), rows["audio"].to_pylist()
        if not fresh.keys() & set(keys):
            yield shard
            continue
        audio = pa.array([fresh.get(key, uri) for key, uri in zip(keys, uris, strict=True)], pa.string())
        at = rows.schema.get_field_index("audio")
        copy = rows.set_column(at, rows.schema.field(at), audio)
        file, row_group = files.add(copy if shard.texts_file is None else without_texts(copy))
        yield replace(shard, file=file, row_group=row_group)


def _without_signature(uri: str) -> tuple[str, str]:
    """Split a URL into the part before its query and the fragment."""
    bare, _, fragment = uri.partition("#")
    return bare.partition("?")[0], fragment


def _signed(staging: Staging) -> Iterator[tuple[list[str], list[str]]]:
    """Yield ids and URLs of the manifest's rows whose audio is an HTTP URL with a query."""
    for chunk in staging.chunks:
        rows = _columns(chunk)
        signed = rows.filter(pc.match_substring_regex(rows["audio"], _HTTP + r"[^#]*\?"))
        if signed.num_rows:
            yield signed["recording_id"].to_pylist(), signed["audio"].to_pylist()


def _columns(chunk: Path) -> pa.Table:
    with pq.ParquetFile(chunk) as file:
        return file.read(["recording_id", "audio"])

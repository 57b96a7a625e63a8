"""Erasure of rows from what other commands derive from an output: summaries and compacted files."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.compact import Generation, load_generations
from pipeline.dataset.erase.protocol import Changes
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.parts import encodings
from pipeline.dataset.plan import Plan
from pipeline.layout import CALLS, SUMMARIES
from pipeline.manifest.hash_buckets import id_keys

_LINEAGE = b"speech_emotion.compacted"


def erase_copies(changes: Changes, entry: Plan, gone: Tombstones) -> None:
    """Delete the summaries of the runs that lose rows and all metrics of conversations, and rewrite compacted files.

    `summarize` and `calls` make theirs again. Can be repeated.
    """
    runs = set(entry.erasure.plans) if entry.erasure else set()
    for file in list(changes.store.list(SUMMARIES)):
        of_run = file.key.rpartition("/")[2].removesuffix(".parquet") in runs
        # a conversation is in the file of its last run, whichever runs have its recordings
        if of_run or (file.key.startswith(f"{CALLS}/") and file.key.endswith(".parquet")):
            changes.remove(file.key)
    for generation in load_generations(changes.store):
        if runs & set(generation.plans):
            _generation(changes, generation, gone)


def _generation(changes: Changes, generation: Generation, gone: Tombstones) -> None:
    rows, is_whole = 0, True
    for merge in generation.files:
        try:
            content = changes.store.read(merge.key)
        except FileNotFoundError:
            is_whole = False  # a compaction that was killed; the next one merges the parts as they are then
            continue
        with pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True) as file:
            ids = file.read(["recording_id"])["recording_id"].to_pylist()
            keep = ~gone.matches(id_keys(ids))
            rows += int(keep.sum())
            if not keep.all():
                changes.replace(merge.key, _without(file, keep.tolist()))
    try:
        counted = json.loads(changes.store.read(generation.success_key))
    except FileNotFoundError:
        return
    if is_whole and counted["rows"] != rows:
        changes.replace(generation.success_key, json.dumps({**counted, "rows": rows}).encode())


def _without(file: pq.ParquetFile, keep: list[bool]) -> bytes:
    """Return a compacted file with the rows of a mask, in the same row groups."""
    lineage = (file.metadata.metadata or {})[_LINEAGE]
    schema = file.schema_arrow.remove_metadata()
    sink, start = io.BytesIO(), 0
    with pq.ParquetWriter(sink, schema, **encodings(schema)) as writer:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            table = table.replace_schema_metadata(None).filter(pa.array(keep[start : start + table.num_rows]))
            start += file.metadata.row_group(number).num_rows
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({_LINEAGE: lineage})
    return sink.getvalue()

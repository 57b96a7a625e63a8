"""Functions that write and read manifests, for the tests of their modules."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from pipeline.manifest.read import ManifestChunk, conform, read_manifest, unify
from pipeline.manifest.records import RejectedLine
from pipeline.schema import ROW_SCHEMA


def read(path: Path | str, **options: object) -> tuple[pa.Table, list[RejectedLine]]:
    """Read the whole manifest as one table."""
    chunks: list[ManifestChunk] = list(read_manifest(str(path), **options))
    schema = unify(chunk.rows.schema for chunk in chunks)
    tables = [conform(chunk.rows, schema) for chunk in chunks]
    return pa.concat_tables(tables) if tables else ROW_SCHEMA.empty_table(), [r for c in chunks for r in c.rejects]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

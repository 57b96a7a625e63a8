"""Outputs that grow night by night, by the real driver without Ray or models, and every reader of them."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.engine.run as driver_module
from pipeline.analytics.compact import compact
from pipeline.analytics.nearest import nearest
from pipeline.analytics.search import query_by_utterance
from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.config import load_config
from pipeline.dataset.reader import asking, finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.engine.run import Driver
from pipeline.models import roles
from pipeline.storage.store import open_store
from tests.support import noop_job
from tests.support.outputs import MODELS, WIDTH
from tests.support.pins import by_role


@pytest.fixture
def quick(monkeypatch):
    """Run jobs in this process without Ray, with models that do nothing."""
    pinned = SimpleNamespace(warnings=(), result=lambda: (MODELS, {"audio_embedding": WIDTH}))
    monkeypatch.setattr(driver_module, "cluster", noop_job.no_cluster)
    monkeypatch.setattr(driver_module, "run_shards", noop_job._run_shards)
    monkeypatch.setattr(driver_module, "Pinning", lambda *_: nullcontext(pinned))
    monkeypatch.setattr(roles, "choose", lambda *_, **__: by_role({"fusion/en": "m"}))


def driver_of(output: Path, manifest: Path, **options: object) -> Driver:
    usual = {"embeddings": "audio", "shard_rows": 2, "audio_root": "/a", **options}
    return Driver(load_config(None, {"manifest": [str(manifest)], "output": str(output), **usual}), io.StringIO())


def night(output: Path, manifest: Path, **options: object) -> list[dict[str, object]]:
    """Run one job. Returns: its reports."""
    return driver_of(output, manifest, **options).run()


def manifest_of(path: Path, prefix: str, values: object, name: str = "x") -> Path:
    """Write rows with one more column: Parquet for an Arrow array, otherwise JSON Lines; `...` leaves the key out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(values, pa.Array):
        rows = range(len(values))
        table = pa.table(
            {
                "id": [f"{prefix}{n}" for n in rows],
                "audio": [f"/a/{prefix}{n}.wav" for n in rows],
                "text": ["t"] * len(values),
                name: values,
            }
        )
        pq.write_table(table, path)
        return path
    assert isinstance(values, list)
    records = [{"id": f"{prefix}{n}", "audio": f"/a/{prefix}{n}.wav", "text": "t", **({} if value is ... else {name: value})}
               for n, value in enumerate(values)]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def written(output: Path, column: str = "x") -> dict[str, object]:
    """Return the column's value of every recording, reading each file by itself."""
    found: dict[str, object] = {}
    for path in sorted((output / "utterances").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        found |= dict(zip(table["recording_id"].to_pylist(), table[column].to_pylist(), strict=True))
    return found


def rejected(output: Path) -> dict[str, dict[str, object]]:
    rows = [
        row
        for path in sorted((output / "rejects").rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    assert len({row["recording_id"] for row in rows}) == len(rows)
    return {str(row["recording_id"]): row for row in rows}


def status(output: Path) -> tuple[str, list[str]]:
    found = audit(open_store(str(output)), deep=True)
    return found.status, [violation.line() for violation in found.violations]


def read_everywhere(output: Path, column: str, first: str) -> dict[str, object]:
    """Verify, summarise, compact and search; read with pandas and DuckDB. Returns: the column as a search shows it."""
    import duckdb

    store = open_store(str(output))
    assert status(output) == ("sound", [])
    rows = finished_rows(store)
    groups = parse_groups([column], rows.schema().names)
    list(summarize(rows, groups))
    utterances = rows.utterances().count_rows()
    assert sum(merged(store, groups)["utterances"].to_pylist()) == utterances
    assert sum(made.rows for made in compact(rows, target_bytes=10**9)) == utterances
    query = query_by_utterance(rows, f"{first}#0000", None)
    plain, asked = (
        nearest(rows, query, top=10**6, where=where, columns=["recording_id", column]) for where in (None, "true")
    )
    assert plain.num_rows == asked.num_rows == utterances - 1
    pq.write_table(asked, output / "answer.parquet")
    (output / "answer.parquet").unlink()
    with asking(utterances=rows.utterances()) as connection:
        assert connection.sql("SELECT count(*) FROM utterances").fetchall() == [(utterances,)]
    for folder in ("utterances", "compacted"):
        by_pandas = sum(len(pd.read_parquet(path)) for path in (output / folder).rglob("*.parquet"))
        glob = (
            f"'{output}/{folder}/**/*.parquet', union_by_name=true, hive_partitioning=true, hive_types_autocast=false"
        )
        relation = duckdb.sql(f'SELECT recording_id, CAST("{column}" AS VARCHAR) FROM read_parquet({glob})')
        assert by_pandas == len(relation.fetchall()) == utterances
    return dict(zip(plain["recording_id"].to_pylist(), plain[column].to_pylist(), strict=True))

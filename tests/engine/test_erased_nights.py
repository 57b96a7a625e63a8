"""Jobs on outputs without words and on outputs with erased rows, by the real driver without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import erase
from pipeline.dataset.corpus_ids import keep_ids
from pipeline.dataset.history import History
from pipeline.dataset.plan import load_plans
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.layout import CORPUS, INDEX
from pipeline.storage.store import LocalStore
from tests.support.noop_driver import Killed, without_ray

SECRET = "unutterable"


def with_secret(out: Path) -> list[str]:
    return [
        path.name
        for path in out.rglob("*.parquet")
        if SECRET in json.dumps(pq.ParquetFile(path).read().to_pylist(), default=str)
    ]


def test_a_killed_job_without_words_is_resumed_with_them(tmp_path, monkeypatch):
    """Fails if a resumed run has lost the texts of its rows, or if the output has one when it is finished."""
    job = without_ray(tmp_path, monkeypatch)
    rows = [{**row, "text": f"{SECRET} {number}"} for number, row in enumerate(job.clips("a", 6))]
    manifest = job.manifest("m.jsonl", rows)
    job.kill_after = 1
    with pytest.raises(Killed):
        job.job(manifest, texts="hash", shard_rows=2)
    assert len(with_secret(job.output)) == 1 and audit(LocalStore(job.output)).status == "unfinished"
    job.kill_after = None
    assert job.job(manifest, texts="hash", shard_rows=2) == [("000001", 6, {})]
    assert with_secret(job.output) == []
    assert audit(LocalStore(job.output), deep=True).status == "sound"
    table = job.utterances()
    assert set(table["text_source"].to_pylist()) == {"manifest"} and len(set(table["text"].to_pylist())) == 6
    with pytest.raises(ConfigError, match="texts: 'hash' in the output, None requested"):
        job.job(manifest)


def test_an_erased_row_is_not_annotated_by_the_next_job(tmp_path, monkeypatch):
    """Fails if the next job on the same manifest annotates an erased row again, or does not annotate a new one."""
    job = without_ray(tmp_path, monkeypatch)
    rows = job.clips("a", 3)
    job.job(job.manifest("m.jsonl", rows))
    assert erase.main([str(job.output), "--recording", "a1", "--yes"]) == 0
    assert job.job(job.manifest("m.jsonl", rows)) == []
    assert "1 rows of the manifests were erased from this output" in job.printed
    assert job.job(job.manifest("m.jsonl", [*rows, *job.clips("b", 1)])) == [("000003", 1, {})]
    assert sorted(job.utterances()["recording_id"].to_pylist()) == ["a0", "a2", "b0"]
    assert [bool(plan.erasure) for plan in load_plans(LocalStore(job.output))] == [False, True, False]
    assert audit(LocalStore(job.output), deep=True).status == "sound"
    assert job.driver is not None and job.driver.describe()["rows_erased"] == 1


def test_a_planner_that_chose_its_rows_before_an_erasure_chooses_again(tmp_path, monkeypatch):
    """Fails if an erased row comes back through a job that took over its reject, and read the tombstones too early."""
    job = without_ray(tmp_path, monkeypatch)
    rows = job.clips("a", 3)
    (tmp_path / "a/1.wav").unlink()
    manifest = job.manifest("m.jsonl", rows)
    assert job.job(manifest, max_reject_rate=1) == [("000001", 2, {"NOT_FOUND": 1})]
    job.clips("a", 3)
    real = LocalStore.put_if_absent

    def meanwhile(self: LocalStore, key: str, content: bytes) -> bool:
        if key == "_runs/000002/plan.json" and b'"erasure"' not in content:
            assert erase.main([str(job.output), "--recording", "a1", "--yes"]) == 0
        return real(self, key, content)

    monkeypatch.setattr(LocalStore, "put_if_absent", meanwhile)
    assert job.job(manifest, retry_rejects="NOT_FOUND") == []
    assert sorted(job.utterances()["recording_id"].to_pylist()) == ["a0", "a2"]
    assert audit(LocalStore(job.output), deep=True).status == "sound"


def test_the_index_and_the_ids_of_the_corpus_forget_a_row(tmp_path, monkeypatch):
    """Fails if the copies of ids beside the plans keep an erased one, or if an index that is written late is believed."""
    job = without_ray(tmp_path, monkeypatch)
    store, rows = LocalStore(job.output), job.clips("a", 3)
    job.job(job.manifest("m.jsonl", rows))
    manifest = job.manifest("m.jsonl", [*rows, *job.clips("b", 1)])
    job.job(manifest)  # indexes the first plan
    lines = [json.dumps(row).encode() for row in rows]
    assert keep_ids(store, lines)
    late = {file.key: store.read(file.key) for file in store.list(INDEX)}
    assert late and "a1" in kept_ids(store)
    assert erase.main([str(job.output), "--recording", "a1", "--yes"]) == 0
    assert not list(store.list(INDEX)) and kept_ids(store) == ["a0", "a2"]
    for key, content in late.items():
        store.put_if_absent(key, content)
    assert [(plan.rows, bool(plan.erased)) for plan in History(store).plans] == [(2, True), (1, False), (0, False)]
    assert job.job(manifest) == [] and "1 rows of the manifests were erased" in job.printed
    keep_ids(store, lines)
    assert set(kept_ids(store)) == {"a0", "a2"}
    assert audit(store, deep=True).status == "sound"


def test_a_job_that_read_the_history_before_an_erasure_writes_no_index(tmp_path, monkeypatch):
    """Fails if a job that ends after an erasure writes the ids that it read before."""
    job = without_ray(tmp_path, monkeypatch)
    store = LocalStore(job.output)
    job.job(job.manifest("m.jsonl", job.clips("a", 3)))
    history = History(store)
    assert sum(len(keys) for keys, _ in history.ids(history.plans)) == 3
    assert erase.main([str(job.output), "--recording", "a1", "--yes"]) == 0
    history.extend()
    assert not list(store.list(INDEX))


def kept_ids(store: LocalStore) -> list[str]:
    tables = [pq.read_table(pa.BufferReader(store.read(file.key))) for file in store.list(CORPUS)]
    return [name for table in tables for name in table["recording_id"].to_pylist()]

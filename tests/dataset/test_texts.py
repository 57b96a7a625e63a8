"""Outputs without words: `--texts none` and `hash`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.analytics.export import read_output
from pipeline.analytics.nearest import shown_columns
from pipeline.dataset.history import History
from pipeline.dataset.plan import load_plans, read_shard
from pipeline.dataset.prune import find_leftovers
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.renewal import renew
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError, JobError
from pipeline.layout import texts_file
from pipeline.manifest.staging import Staging
from pipeline.shard.context import Work
from pipeline.shard.prepare import prepare
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import LocalStore, Store, open_store
from pipeline.storage.versions import require_unversioned
from tests.support import outputs
from tests.support.damages import column, rewrite
from tests.support.manifests import jsonl
from tests.support.outputs import BAD, FIRST, annotate, plan_rows, publish_plan
from tests.support.s3_server import S3Server

SECRET = "unutterable"
ROWS = [{**row, "text": f"{SECRET} {row['text']}"} for row in FIRST]
BROKEN = {"id": "broken", "audio": 5, "text": f"{SECRET} words of a bad row"}


@pytest.fixture(params=["none", "hash"])
def kept(request, monkeypatch) -> str:
    monkeypatch.setitem(outputs.FLAGS, "texts", request.param)
    real = Staging.__init__
    monkeypatch.setattr(Staging, "__init__", lambda self, *a, **k: real(self, *a, **{**k, "words": False}))
    recognised = outputs.recognised

    def with_words(rows: pa.Table, seed: int) -> pa.Table:
        table = recognised(rows, seed)
        words = pa.array([f"{SECRET} transcript"] * table.num_rows)
        return table.set_column(table.schema.get_field_index("text"), "text", words)

    monkeypatch.setattr(outputs, "recognised", with_words)
    return str(request.param)


def with_secret(out: Path) -> list[str]:
    """Return the files that have the secret in their bytes or, if Parquet, in a value."""
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += json.dumps(pq.ParquetFile(path).read().to_pylist(), default=str).encode()
        if SECRET.encode() in content:
            found.append(path.relative_to(out).as_posix())
    return found


def test_no_word_is_in_a_finished_output(tmp_path, kept):
    """Fails if a text of the manifest or of Whisper, or a line that cannot be read, stays in any file of the output."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", [*ROWS, BROKEN])
    assert with_secret(tmp_path / "out") == [texts_file(plan.files[0][0])]
    texts = [text for shard in plan.shards() for text in read_shard(store, shard)["text"].to_pylist()]
    assert sorted(texts) == sorted(str(row["text"]) for row in ROWS)
    annotate(str(tmp_path / "out"), plan)
    assert audit(store, deep=True).status == "unfinished"
    publish_plan(store, plan)
    assert with_secret(tmp_path / "out") == []
    assert audit(store, deep=True).status == "sound" and audit(store).leftovers == 0
    expected = None if kept == "none" else hashlib.sha256(f"{SECRET} transcript".encode()).hexdigest()
    rows = finished_rows(store)
    assert set(rows.utterances().to_table()["text"].to_pylist()) == {expected}
    rejects = rows.rejects().to_table().to_pylist()
    assert {row["text"] for row in rejects} == {None} and len(rejects) == 3
    assert [len(row["raw"]) for row in rejects if row["raw"]] == [64]
    assert "text" not in shown_columns(rows)
    assert not any("text" in row for row in read_output(str(tmp_path / "out")).rows)


def test_a_second_night_adds_no_reject_again(tmp_path, kept):
    """Fails if rejects without their raw lines are taken for new ones on every night."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", [*ROWS, BROKEN])
    annotate(str(tmp_path / "out"), plan)
    publish_plan(store, plan)
    staging = Staging(tmp_path / "again")
    staging.read([str(tmp_path / "m" / "m.jsonl")], lambda rows: (rows, {}))
    staging.extra = plan.extra
    assert not staging.select(*History(store).held(load_plans(store)))


def test_a_publication_that_is_killed_is_completed(tmp_path, kept, monkeypatch):
    """Fails if texts stay when the publisher is killed before `_SUCCESS`, or if it cannot be repeated."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", ROWS)
    annotate(str(tmp_path / "out"), plan)
    real = LocalStore.put_if_absent

    def killed(self: LocalStore, key: str, content: bytes) -> bool:
        if key.endswith("_SUCCESS"):
            raise KeyboardInterrupt
        return real(self, key, content)

    monkeypatch.setattr(LocalStore, "put_if_absent", killed)
    with pytest.raises(KeyboardInterrupt):
        publish_plan(store, plan)
    monkeypatch.setattr(LocalStore, "put_if_absent", real)
    publish_plan(store, plan)
    assert with_secret(tmp_path / "out") == [] and audit(store, deep=True).status == "sound"


def test_a_lost_part_of_a_finished_run_is_not_made_from_other_words(tmp_path, kept):
    """Fails if a shard whose texts are gone is transcribed instead, and gets other rows than it was planned with."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", ROWS)
    annotate(str(tmp_path / "out"), plan)
    publish_plan(store, plan)
    next((tmp_path / "out").rglob("000001-000002.parquet")).unlink()
    work = Work(str(tmp_path / "out"), plan, AudioRoots.parse(("/a",), []))
    with pytest.raises(JobError, match="--give-up 000001"):
        prepare(work, plan.shard(2))


def test_verify_finds_words_and_texts(tmp_path, kept):
    """Fails if verify passes texts that were left beside a finished plan, or a word in a part."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", ROWS)
    texts = texts_file(plan.files[0][0])
    content = store.read(texts)
    annotate(str(tmp_path / "out"), plan)
    publish_plan(store, plan)
    store.put_if_absent(texts, content)
    assert [(v.invariant, v.key) for v in audit(store).violations] == [("TEXTS", texts)]
    (tmp_path / "out" / texts).unlink()
    part = next((tmp_path / "out").rglob("000001-000002.parquet"))
    rewrite(part, column("text", lambda values: ["word"] * len(values)))
    assert {v.invariant for v in audit(store, deep=True).violations} == {"TEXTS"}


def test_renewed_signatures_leave_the_texts_where_they_are(tmp_path, kept):
    """Fails if a copy of rows with fresh URLs has their texts, which nobody would delete, or if its rows have lost them."""
    rows = [{**row, "audio": f"https://host/{row['id']}.wav?signature=old"} for row in ROWS]
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", rows)
    fresh = [{**row, "audio": f"https://host/{row['id']}.wav?signature=new"} for row in ROWS]
    staging = Staging(tmp_path / "again")
    staging.read([str(jsonl(tmp_path / "new.jsonl", *fresh))], lambda table: (table, {}))
    renewed = renew(store, plan, list(plan.shards()), staging)
    found = [row for shard in renewed for row in read_shard(store, shard).to_pylist()]
    assert {row["audio"][-3:] for row in found} == {"new"}
    assert {row["recording_id"]: row["text"] for row in found} == {row["id"]: row["text"] for row in ROWS}
    assert with_secret(tmp_path / "out") == [texts_file(plan.files[0][0])]


def test_texts_of_a_planner_that_lost_are_leftovers(tmp_path, kept):
    """Fails if prune leaves words of a planner that lost, or takes those of an unfinished plan."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", [*ROWS, BAD])
    assert list(find_leftovers(store, now_s=0.0)) == []
    (tmp_path / "out" / "_runs/000001/plan.json").unlink()
    plan_rows(store, tmp_path / "again", ROWS)
    assert texts_file(plan.files[0][0]) in {each.key for each in find_leftovers(store, now_s=0.0)}


def test_a_dataset_that_keeps_texts_is_as_before(tmp_path):
    """Fails if outputs made before the setting existed get another settings document or other files."""
    store = LocalStore(tmp_path / "out")
    plan = plan_rows(store, tmp_path / "m", FIRST)
    assert "texts" not in plan.settings.document()
    assert not list((tmp_path / "out").rglob("*-texts.parquet"))
    assert all(shard.texts_file is None for shard in plan.shards())


def test_a_bucket_with_versions_is_refused(s3: S3Server, tmp_path: Path):
    """Fails if deleted texts live on as old versions of a bucket."""
    files = s3.filesystem()
    files.mkdir("versioned")
    store: Store = open_store("s3://versioned/out")
    require_unversioned(store, "x")
    files.call_s3("put_bucket_versioning", Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(ConfigError, match="versioning: Enabled"):
        require_unversioned(store, "--texts deletes texts")
    require_unversioned(LocalStore(tmp_path), "x")

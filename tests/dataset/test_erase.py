"""Erasure of rows from every file of an output, killed before and after every change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import erase as command
from pipeline.analytics.compact import compact
from pipeline.analytics.erased_copies import erase_copies
from pipeline.analytics.summarize import parse_groups, summarize
from pipeline.dataset.compatibility import settle_types
from pipeline.dataset.erase.choice import rows_where
from pipeline.dataset.erase.protocol import Changes
from pipeline.dataset.erase.retention import expired
from pipeline.dataset.exclusion import exclusion_lines
from pipeline.dataset.history import History
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.plan import load_plans, write_plan
from pipeline.dataset.reader import committed_rows, finished_rows
from pipeline.dataset.retries import find_retriable
from pipeline.dataset.tombstones import tombstones
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError, JobError
from pipeline.manifest.staging import Selection, Staging
from pipeline.storage.cleanup import walk
from pipeline.storage.store import LocalStore, Store, open_store
from tests.support import iam, outputs
from tests.support.corpus import ROOT
from tests.support.erasing import MARK, WHERE, Kill, Killed, check_kills, erase, make, plain, values, with_mark
from tests.support.fault_proxy import fault_proxy
from tests.support.manifests import jsonl
from tests.support.outputs import annotate, plan_rows, publish_plan
from tests.support.s3_server import S3Server


def test_nothing_of_the_rows_is_left_and_the_others_are_as_before(tmp_path):
    """Fails if a value of an erased row is in any byte, page, footer or document, or if another row changes."""
    store = make(str(tmp_path / "out"), tmp_path)
    before, marked = values(store), with_mark(store)
    assert {key.split("/")[0] for key in marked} == {"_runs", "utterances", "rejects"}
    erase(store, WHERE)
    assert with_mark(store) == set()
    after = values(store)
    for name, table in before.items():
        assert (
            table.num_rows
            and after[name].equals(table)
            and after[name].schema.equals(table.schema, check_metadata=True)
        )
    found = audit(store, deep=True)
    assert (
        [violation.line() for violation in found.violations] == [] and found.status == "sound" and found.leftovers == 0
    )
    assert [(state.rows, state.erased, state.erases) for state in found.plans] == [
        (6, 5, None),
        (1, 2, None),
        (0, 0, 7),
    ]


def test_a_kill_at_any_change_is_completed(tmp_path):
    """Fails if a kill before or after some write or delete leaves a value, loses or doubles a row, or cannot be repeated."""
    whole = make(str(tmp_path / "out"), tmp_path)
    copies = iter(range(1000))

    def make_copy() -> Store:
        return LocalStore(Path(shutil.copytree(tmp_path / "out", tmp_path / f"copy{next(copies)}")))

    assert check_kills(make_copy, values(whole)) > 15


def run(store: Store, *words: str) -> int:
    return command.main([store.root, *words])


def staged(store: Store, folder: Path, *manifests: Path) -> Selection:
    """Select the new rows of manifests, as a job does."""
    staging = Staging(folder)
    staging.read(list(map(str, manifests)), lambda rows: (rows, {}))
    plans = load_plans(store)
    staging.extra = settle_types(staging.extra, plans)
    return staging.select(*History(store).held(plans), None, tombstones(store, plans).matches)


def test_the_same_manifest_does_not_add_the_rows_again(tmp_path):
    """Fails if the next night brings back a row or a reject of planning, also from another line, or holds back a new row."""
    store = make(str(tmp_path / "out"), tmp_path)
    erase(store, WHERE)
    new = jsonl(tmp_path / "new.jsonl", plain("new"), {"id": "secret-bad", "audio": 6})
    again = staged(store, tmp_path / "again", tmp_path / "0/m.jsonl", tmp_path / "1/m.jsonl", new)
    assert again.rows == 1 and list(again.rejects()) == []
    assert (again.erased, again.held) == (8, 6)
    assert "8 rows of the manifests were erased from this output" in next(exclusion_lines(again))


@pytest.mark.parametrize("words", [["--recording", "r0", "none"], ["--manifest", "LIST"], ["--where", "note = 'r0'"]])
def test_rows_are_chosen_by_id_list_and_condition(tmp_path, capsys, words):
    """Fails if an option chooses other rows, or if anything is written without --yes."""
    store = make(str(tmp_path / "out"), tmp_path)
    listed = jsonl(tmp_path / "list.jsonl", {"id": "r0"}, {"id": "none"})
    words = [str(listed) if word == "LIST" else word for word in words]
    before = {file.key: store.read(file.key) for file in walk(store)}
    assert run(store, *words) == 0
    assert {file.key: store.read(file.key) for file in walk(store)} == before
    shown = capsys.readouterr().out
    assert "1 recordings with 1 utterances" in shown and "add --yes" in shown
    assert ("1 of 2 ids are not in this output" in shown) == (words[0] != "--where")
    assert run(store, *words, "--yes") == 0
    rows = finished_rows(store)
    assert "r0" not in rows.utterances().to_table()["recording_id"].to_pylist()
    assert rows.utterances().count_rows() == 10 and rows.rejects().count_rows() == 5
    assert audit(store, deep=True).status == "sound"
    assert run(store, *words, "--yes") == 0
    assert len(load_plans(store)) == 3


def test_conditions_see_columns_of_utterances_rejects_and_manifest(tmp_path):
    """Fails if a condition cannot use a column that only one kind of row has, or the place of a row in its manifest."""
    store = make(str(tmp_path / "out"), tmp_path)
    rows = committed_rows(store)
    assert rows_where(rows, "reason = 'NOT_FOUND'")[0] == {"r4", "r7"}
    assert rows_where(rows, "segment_index = 2")[0] == {"r1"}
    assert rows_where(rows, "line = 1 AND manifest LIKE '%/0/m.jsonl'")[0] == {"r0"}
    assert rows_where(rows, "speaker = 'a' AND emotion IS NOT NULL")[0] == {
        "secret-one",
        "secret-four",
        "secret-five",
        "s1",
    }
    ids, nameless = rows_where(rows, "recording_id IS NULL")
    assert ids == set() and len(nameless) == 1
    for wrong in (
        "no_column = 1",
        "count(*) > 1",
        "note =",
        "",
        "1",
        "speaker",
        "note::BOOLEAN",
        "1=1; drop table rejects",
    ):
        with pytest.raises(ConfigError, match=r"^--where ") as refused:
            rows_where(rows, wrong)
        assert "secret" not in str(refused.value)


def test_rows_are_erased_by_age(tmp_path):
    """Fails if a young row goes, an old one stays, or a row without a date goes."""
    store = open_store(str(tmp_path / "out"))
    dates = {"old": "2020-01-01T10:00:00Z", "young": "2020-01-03T10:00:00Z", "bad": "yesterday", "none": None}
    plan = plan_rows(store, tmp_path / "m", [plain(name, on=date) for name, date in dates.items()])
    annotate(store.root, plan)
    publish_plan(store, plan)
    rows, now = committed_rows(store), datetime(2020, 1, 4, tzinfo=UTC)
    assert rows_where(rows, expired(rows, 2, "on", now=now))[0] == {"old"}
    assert rows_where(rows, expired(rows, 0, None, now=now))[0] == set()
    assert rows_where(rows, expired(rows, 1, None, now=datetime.now(UTC) + timedelta(days=2)))[0] == set(dates)
    with pytest.raises(ConfigError, match="no such column"):
        expired(rows, 2, "recorded")
    assert run(store, "--older-than", "30", "--by", "on", "--yes") == 0
    assert sorted(finished_rows(store).utterances().to_table()["recording_id"].to_pylist()) == ["bad", "none"]


def test_a_job_and_an_erasure_exclude_each_other(tmp_path, capsys):
    """Fails if rows of a running job are erased under it, or if a job starts between two steps of an erasure."""
    store, night = make(str(tmp_path / "out"), tmp_path), jsonl(tmp_path / "night.jsonl", plain("night"))
    plan = plan_rows(store, tmp_path / "running", [plain("running")])
    assert run(store, "--recording", "r0", "--yes") == 2
    assert "run 000003" in capsys.readouterr().err
    annotate(store.root, plan)
    publish_plan(store, plan)
    with pytest.raises(Killed):
        erase(store, WHERE, Changes(store, before=Kill(6)))
    with pytest.raises(ConfigError, match="--finish"):
        staged(store, tmp_path / "night", night)
    assert run(store, "--recording", "r0") == 0 and "interrupted" in capsys.readouterr().out
    assert run(store, "--finish") == 0
    assert with_mark(store) == set() and audit(store, deep=True).status == "sound"
    assert staged(store, tmp_path / "later", night).rows == 1


def test_a_planner_that_selected_before_plans_again(tmp_path):
    """Fails if a planner that read the plans before the erasure can add an erased row under the number it had in mind."""
    store = make(str(tmp_path / "out"), tmp_path)
    number = len(load_plans(store)) + 1
    erase(store, WHERE)
    assert load_plans(store)[number - 1].erasure is not None


def test_late_writers_restore_nothing(tmp_path):
    """Fails if a worker or driver that was thought dead brings back a part or the rejects, also where no row is left."""
    store = make(str(tmp_path / "out"), tmp_path)
    old = {file.key: store.read(file.key) for file in walk(store)}
    erase(store, "true")
    for key, content in old.items():
        if key.startswith(("utterances/", "rejects/")):
            assert not store.put_if_absent(key, content)
    assert finished_rows(store).utterances().count_rows() == 0 and audit(store, deep=True).status == "sound"


def test_files_of_killed_writers_go_too(tmp_path):
    """Fails if a hidden temporary or a shard file of a beaten planner keeps erased rows, or a running planner loses its files."""
    store = make(str(tmp_path / "out"), tmp_path)
    part = next(file.key for file in walk(store, "utterances"))
    folder, _, name = part.rpartition("/")
    for key in (f"{folder}/.{name}.{'a' * 32}.tmp", f"_runs/000001/shards/{'b' * 12}-00000.parquet"):
        (tmp_path / "out" / key).write_bytes(b"Secret")
    later = tmp_path / "out" / "_runs/000004/shards" / f"{'c' * 12}-00000.parquet"
    later.parent.mkdir(parents=True)
    later.write_bytes(b"rows of a planner that is running")
    erase(store, WHERE)
    assert with_mark_in_bytes(tmp_path / "out") == [] and later.exists()


def with_mark_in_bytes(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file() and MARK in path.read_bytes()]


def test_summaries_and_compacted_files(tmp_path):
    """Fails if a summary or compacted file keeps an erased row, another row of it changes, or they cannot be made again."""
    store = make(str(tmp_path / "out"), tmp_path)
    rows = finished_rows(store)
    assert list(compact(rows, target_bytes=1 << 20))
    groups = parse_groups(["note"], rows.schema().names)
    assert list(summarize(rows, groups))
    compacted = [file.key for file in store.list("compacted") if file.key.endswith(".parquet")]
    before = {key: pq.read_table(pa.BufferReader(store.read(key))) for key in compacted}
    assert run(store, "--where", WHERE, "--yes") == 0
    assert with_mark(store) == set()
    for key, table in before.items():
        kept = table.filter(pa.array(["secret" not in name for name in table["recording_id"].to_pylist()], pa.bool_()))
        after = pq.read_table(pa.BufferReader(store.read(key)))
        assert after.equals(kept) and after.schema.equals(table.schema, check_metadata=True)
    assert list(compact(finished_rows(store), target_bytes=1 << 20)) == []
    assert [number for number, _ in summarize(finished_rows(store), groups)] == ["000001", "000002"]
    assert with_mark(store) == set()


def test_metrics_of_conversations_of_later_runs_go_too(tmp_path):
    """Fails if a conversation that spans runs keeps an erased recording in the file of a later run."""
    store = make(str(tmp_path / "out"), tmp_path)
    for key in ("@calls/audio/000002.parquet", "@calls/audio/_summary.json", "note/000002.parquet"):
        store.put_if_absent(f"summaries/{key}", b"sums")
    erase(store, "recording_id = 'r0'")
    erase_copies(Changes(store), load_plans(store)[2], tombstones(store, load_plans(store)))
    assert {file.key for file in store.list("summaries")} == {
        "summaries/@calls/audio/_summary.json",
        "summaries/note/000002.parquet",
    }


def test_what_was_read_before_an_erasure_is_not_written_after_it(tmp_path):
    """Fails if a summary or compacted file that is being computed during an erasure brings back its rows."""
    store = make(str(tmp_path / "out"), tmp_path)
    rows = finished_rows(store)
    groups = parse_groups(["note"], rows.schema().names)
    erase(store, WHERE)
    for writing in (summarize(rows, groups), compact(rows, target_bytes=1 << 20)):
        with pytest.raises(JobError, match="erasure 000003 began meanwhile"):
            list(writing)
    assert with_mark(store) == set()


def test_an_output_without_words(tmp_path, monkeypatch):
    """Fails if rows of an output made with --texts none cannot be erased, or if verify then finds a fault."""
    monkeypatch.setitem(outputs.FLAGS, "texts", "none")
    store = make(str(tmp_path / "out"), tmp_path)
    erase(store, WHERE)
    assert with_mark(store) == set() and audit(store, deep=True).status == "sound"


def test_a_second_erasure_has_the_same_salt(tmp_path):
    """Fails if a later erasure forgets the rows of an earlier one."""
    store = make(str(tmp_path / "out"), tmp_path)
    erase(store, "recording_id = 'secret-one'")
    erase(store, "recording_id = 'r0'")
    assert len({plan.erasure.salt for plan in load_plans(store) if plan.erasure}) == 1
    assert staged(store, tmp_path / "again", tmp_path / "0/m.jsonl").erased == 2
    assert audit(store, deep=True).status == "sound"


def test_a_row_that_was_retried_goes_from_both_runs(tmp_path):
    """Fails if a row stays in the run that rejected it, or if the later run still counts it among those it took over."""
    store = open_store(str(tmp_path / "out"))
    plan = plan_rows(store, tmp_path / "m", [plain(name) for name in ("r4", "r7", "r0")])
    annotate(store.root, plan)
    publish_plan(store, plan)
    retriable = find_retriable(History(store), [plan], {"NOT_FOUND"}, 5)
    staging = Staging(tmp_path / "retry")
    staging.read([str(tmp_path / "m/m.jsonl")], lambda rows: (rows, {}))
    staging.extra = plan.extra
    selection = staging.select(*History(store).held([plan]), retriable.keys)
    again = write_plan(
        store, 2, selection, settings=plan.settings, models=plan.models, embedding_widths=plan.embedding_widths,
        manifests=[], size=ShardSize(2, 1e9), needs_text=True, retries=retriable.owners_of(selection.tables()),
    )  # fmt: skip
    assert again is not None and again.retries == {"000001": 2}
    annotate(store.root, again)
    publish_plan(store, again)
    assert run(store, "--recording", "r4", "--yes") == 0
    first, later = load_plans(store)[:2]
    assert (first.rows, later.rows, later.retries) == (2, 1, {"000001": 1})
    assert audit(store, deep=True).status == "sound"
    assert run(store, "--where", "reason = 'NOT_FOUND'", "--yes") == 0
    assert [plan.retries for plan in load_plans(store)[:2]] == [{}, {}] and audit(store, deep=True).status == "sound"


@pytest.mark.parametrize("kind", ["labelled", "auto"])
def test_an_output_of_an_earlier_version(tmp_path, kind):
    """Fails if rows of an output made at 7d25560 cannot be erased, or if its other rows change."""
    fixture = ROOT / "tests/fixtures/output_7d25560" / kind
    store = LocalStore(Path(shutil.copytree(fixture, tmp_path / "out")))
    rows = finished_rows(store)
    before = rows.utterances().to_table()
    names = sorted(set(before["recording_id"].to_pylist()))[::2]
    staying = before.filter(pa.array([name not in names for name in before["recording_id"].to_pylist()]))
    assert staying.num_rows and run(store, "--recording", *names, "--yes") == 0
    assert finished_rows(store).utterances().to_table().equals(staying)
    found = audit(store, deep=True)
    assert ([violation.line() for violation in found.violations], found.status) == ([], "sound")


def test_the_policy_of_the_eraser_allows_what_it_does(s3: S3Server, tmp_path):
    """Fails if an erasure needs a right that cluster/aws/eraser.json does not give."""
    make(output := f"s3://{s3.bucket}/emotions/{tmp_path.name}", tmp_path)
    with fault_proxy(s3.endpoint) as proxy:
        words = ["erase", output, "--where", WHERE, "--yes"]
        environment = {**os.environ, **s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    policy = iam.statements(ROOT / "cluster/aws/eraser.json", s3.bucket)
    assert not [request for request in proxy.requests if not iam.allowed(policy, request)]
    used = {iam.asked_for(request)[0] for request in proxy.requests}
    assert {"s3:DeleteObject", "s3:PutObject", "s3:GetBucketVersioning", "s3:ListBucketMultipartUploads"} <= used


def test_an_interrupted_erasure_is_completed_on_s3(s3: S3Server, tmp_path):
    """Fails if an object store keeps a value, refuses to replace an object, or restores one by a late conditional write."""
    store = make(f"s3://{s3.bucket}/{tmp_path.name}/out", tmp_path)
    before, parts = values(store), {entry.key: store.read(entry.key) for entry in store.list("utterances")}
    with pytest.raises(Killed):
        erase(store, WHERE, Changes(store, after=Kill(5)))
    assert run(store, "--where", WHERE, "--yes") == 0
    assert with_mark(store) == set() and audit(store, deep=True).status == "sound"
    assert all(values(store)[name].equals(table) for name, table in before.items())
    assert not any(store.put_if_absent(key, content) for key, content in parts.items())

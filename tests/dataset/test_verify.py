"""An audit finds what is broken, each in its own words, and nothing in what is whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from jobs import verify as command
from pipeline.dataset.verify import outline as outline_module
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Audit, Invariant
from pipeline.dataset.verify.parts import inspect_part
from pipeline.dataset.verify.plans import planned_shards, sound_plan
from pipeline.errors import ConfigError, JobError
from pipeline.layout import PROBE
from pipeline.storage.store import LocalStore, open_store, require_conditional_writes
from tests.support.corpus import ROOT
from tests.support.damaged_rows import DEEP, SHALLOW
from tests.support.damages import Damage, part, without_receipt
from tests.support.outputs import BAD, FIRST, SECOND, annotate, finished_output, plan_rows, publish_plan
from tests.support.s3_server import S3Server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finished_output(str(folder / "out"), folder / "manifests")
    return folder / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def audited(out: Path, *, deep: bool = False) -> Audit:
    """The audit of a folder, which it leaves as it was."""
    before = snapshot(out)
    found = audit(LocalStore(out), deep=deep)
    assert snapshot(out) == before
    assert all(v.line().isprintable() and v.line().startswith(f"{v.invariant}  ") for v in found.violations)
    return found


def codes(out: Path, *, deep: bool = False) -> set[Invariant]:
    return {violation.invariant for violation in audited(out, deep=deep).violations}


# -- whole outputs


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_output_is_sound(out, deep):
    """Fails if an invariant is reported broken that is kept, or a row is left out of the counts."""
    found = audited(out, deep=deep)
    assert (found.status, found.violations, found.leftovers) == ("sound", (), 0)
    first, second = found.plans
    assert (first.rows, first.shards, first.parts, first.utterances, first.rejects) == (13, 6, 6, 12, 3)
    assert (second.rows, second.shards, second.utterances, second.rejects, second.published) == (3, 2, 3, 0, True)


@pytest.mark.parametrize("flags", [{"embedding_dtype": "float16"}, {"embeddings": "none"}, {"partition_by": ""}])
@pytest.mark.parametrize("deep", [False, True])
def test_an_output_of_other_settings_is_sound(tmp_path, monkeypatch, flags, deep):
    """Fails if an audit is right for one schema only."""
    monkeypatch.setattr("tests.support.outputs.FLAGS", flags)
    finished_output(str(tmp_path / "out"), tmp_path / "manifests")
    assert audited(tmp_path / "out", deep=deep).status == "sound"


def test_an_unfinished_output_is_unfinished(tmp_path):
    """Fails if a run that was interrupted, at whatever step, is called broken, or is called complete."""
    store, out = LocalStore(tmp_path / "out"), tmp_path / "out"
    plan = plan_rows(store, tmp_path / "m", [*FIRST, BAD])
    for shards in ([], [3], [0, 1, 2, 4, 5]):
        annotate(str(out), plan, shards=shards)
        found = audited(out, deep=True)
        assert (found.status, found.violations) == ("unfinished", ())
    assert found.plans[0].line() == "plan 000001: unfinished: 6 of 6 shards, not published"
    publish_plan(store, plan)
    (out / "_runs/000001/_SUCCESS").unlink()  # a kill before the last step
    assert audited(out).status == "unfinished"
    publish_plan(store, plan)
    assert audited(out).status == "sound"


def test_an_output_without_a_plan_is_unfinished(tmp_path):
    """Fails if a job killed while it plans leaves what is taken for a complete output of no rows."""
    store = LocalStore(tmp_path / "out")
    plan_rows(store, tmp_path / "m", FIRST)
    (tmp_path / "out/_runs/000001/plan.json").unlink()
    found = audited(tmp_path / "out")
    assert (found.status, found.plans, found.leftovers) == ("unfinished", (), 1)


@pytest.mark.parametrize("walks", [0, 1, 2, 3, 4])
def test_a_running_job_is_not_accused(tmp_path, monkeypatch, walks):
    """Fails if the order of the listings makes parts without a plan, or a success without parts, of a job under way."""
    out = tmp_path / "out"
    store = LocalStore(out)
    first = plan_rows(store, tmp_path / "m", [*FIRST, BAD])
    annotate(str(out), first, shards=[0, 1])
    real, done = outline_module.walk, []

    def meanwhile(*arguments: object):
        if len(done) == walks:  # the rest of the job, and one more, between two listings
            annotate(str(out), first, shards=[2, 3, 4, 5])
            publish_plan(store, first)
            second = plan_rows(store, tmp_path / "m2", SECOND)
            annotate(str(out), second)
            publish_plan(store, second)
        done.append(1)
        return list(real(*arguments))

    monkeypatch.setattr(outline_module, "walk", meanwhile)
    for deep in (False, True):
        assert audit(store, deep=deep).violations == ()
    assert len(done) > walks


def test_what_writers_leave_is_no_violation(out):
    """Fails if the temporary of a writer at work, or the shards of a beaten planner, make a sound output unsound."""
    (out / f"utterances/speaker=a/.000001-000000.parquet.{'0' * 32}.tmp").write_bytes(b"half")
    (out / "_runs/000002/shards/0123456789ab-00000.parquet").write_bytes(b"beaten")
    (out / "_runs/000003/shards").mkdir(parents=True)
    (out / "_runs/000003/shards/0123456789ab-00000.parquet").write_bytes(b"under way")
    require_conditional_writes(LocalStore(out), PROBE)
    found = audited(out, deep=True)
    assert (found.status, found.leftovers, found.leftover_bytes) == ("sound", 3, 19)


# -- broken outputs


@pytest.mark.parametrize("damage", SHALLOW, ids=lambda damage: damage.__name__)
def test_damage_is_named(out, damage: Damage):
    """Fails if this damage passes, is called something else, or drags other violations behind it."""
    damage(out)
    assert codes(out) == SHALLOW[damage]
    assert codes(out, deep=True) == SHALLOW[damage]


@pytest.mark.parametrize("damage", DEEP, ids=lambda damage: damage.__name__)
def test_damage_of_values_is_named(out, damage: Damage):
    """Fails if a wrong value passes a deep audit, or a shallow one reads what it need not."""
    damage(out)
    assert codes(out) == set()
    assert codes(out, deep=True) == DEEP[damage]


_OLDER = {
    "scores_do_not_add_up": {Invariant.SCORES},
    "a_score_is_no_number": {Invariant.SCORES, Invariant.CONFIDENCE, Invariant.LABEL},
    "confidence_is_another_rows": {Invariant.CONFIDENCE},
    "a_label_is_another_emotion": {Invariant.LABEL},
}


@pytest.mark.parametrize("version", [1, 2])
def test_values_of_older_outputs_are_checked(tmp_path, monkeypatch, version):
    """Fails if outputs without `label_scores` are accused, or their scores, confidence and labels are no longer checked."""
    monkeypatch.setattr("tests.support.outputs.VERSION", version)
    finished_output(str(tmp_path / "whole"), tmp_path / "manifests")
    assert audited(tmp_path / "whole", deep=True).violations == ()
    for damage in DEEP:
        if damage.__name__ in _OLDER:
            out = Path(shutil.copytree(tmp_path / "whole", tmp_path / damage.__name__))
            damage(out)
            assert codes(out, deep=True) == _OLDER[damage.__name__]


def test_every_code_has_its_damage():
    """Fails if an invariant has a code that no damage shows, so that nothing says the check works."""
    assert set().union(*SHALLOW.values(), *DEEP.values()) == set(Invariant) - {Invariant.TEXTS}


def test_the_file_is_named(out):
    """Fails if the line does not say which file is meant, or a name from outside breaks the line."""
    (out / "utterances/speaker=a/evil\nname\x1b[31m.parquet").write_bytes(b"")
    part(out, 3).write_bytes(b"")
    lines = sorted(violation.line() for violation in audited(out).violations)
    assert len(lines) == 2
    assert lines[0].startswith("ORPHAN  utterances/speaker=a/evil\\nname\\x1b[31m.parquet  ")
    assert lines[1].startswith("PART_UNREADABLE  utterances/speaker=b/000001-000003.parquet  cannot be read: ")


def test_damages_do_not_hide_each_other(out):
    """Fails if the audit stops at the first broken part."""
    part(out, 0).write_bytes(b"")
    part(out, 2).write_bytes(without_receipt(pq.read_table(part(out, 3)).drop_columns(["text"])))
    part(out, 5).unlink()
    found = audited(out, deep=True)
    assert [v.invariant for v in found.violations] == [
        "PART_UNREADABLE",
        "RECEIPT_MISSING",
        "PUBLISHED_EARLY",
        "PART_MISSING",
    ]
    assert found.plans[0].parts == 5 and found.plans[1].parts == 2


def test_any_byte_may_be_wrong(out):
    """Fails if some flipped byte of a part is a traceback, or changes a value and passes a deep audit."""
    store = LocalStore(out)
    plan = sound_plan(store, "000001")
    planned = next(shard for shard in planned_shards(store, plan, 0, deep=True) if shard.shard.number == 2)
    path, content = part(out, 2), part(out, 2).read_bytes()
    rows, chance = pq.read_table(path), random.Random(7)
    for place in chance.sample(range(len(content)), 400):
        broken = bytearray(content)
        broken[place] ^= chance.choice([0xFF, 1 << chance.randrange(8)])
        path.write_bytes(bytes(broken))
        if not inspect_part(store, plan, planned, planned.key, deep=True).violations:
            assert pq.ParquetFile(path).read().equals(rows), place
    for length in chance.sample(range(len(content)), 40):
        path.write_bytes(content[:length])
        assert inspect_part(store, plan, planned, planned.key, deep=True).violations


@pytest.mark.parametrize(
    "name",
    [
        "_dataset.json",
        "_runs/000001/plan.json",
        "_runs/000001/report.json",
        "rejects/000001.parquet",
        "shards",
        "refused",
    ],
)
def test_any_document_may_be_wrong(out, name):
    """Fails if a damaged document or plan file ends the audit in a traceback."""
    plan = sound_plan(LocalStore(out), "000001")
    path = out / {"shards": plan.files[0][0], "refused": plan.rejects_file}.get(name, name)
    content, chance = path.read_bytes(), random.Random(11)
    hostile = [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"[" * 100_000,
        b'{"format": 1}',
        b"\xff\xfe",
        b'{"format": 1, "settings": 5}',
    ]
    for number in range(30):
        broken = bytearray(content)
        broken[chance.randrange(len(broken))] ^= chance.choice([0xFF, 1 << chance.randrange(8)])
        path.write_bytes(hostile[number] if number < len(hostile) else bytes(broken))
        found = audit(LocalStore(out), deep=True)
        assert found.status == "violated" or number >= len(hostile)


# -- access


def test_no_output_is_no_verdict(tmp_path):
    """Fails if a folder that holds no output is called sound, or a violation."""
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="no output"):
            audit(LocalStore(place))
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        audit(LocalStore(tmp_path / "notes.txt"))


@pytest.mark.parametrize("error", [ConnectionResetError, JobError])
@pytest.mark.parametrize("method", ["read", "seek"])
def test_a_store_that_fails_is_not_called_damage(out, method, error):
    """Fails if an outage in the middle of an audit is reported as a broken part."""

    def fail(*_: object) -> int:
        raise error("reset by peer")

    class Flaky(LocalStore):
        def open(self, key: str):
            dead = type("Dead", (io.BytesIO,), {method: fail})
            return dead(self.read(key)) if key.startswith("utterances/") else super().open(key)

    with pytest.raises(ConfigError, match=r"utterances/.*reset by peer"):
        audit(Flaky(out))


def test_a_folder_that_may_not_be_read_is_not_empty(out, monkeypatch):
    """Fails if parts in a folder without read permission are reported missing."""
    real = os.scandir

    def scandir(folder: object):
        if str(folder).endswith("speaker=a"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ConfigError, match=r"Permission denied.*speaker=a"):
        audit(LocalStore(out))


def test_an_output_on_s3(s3: S3Server, whole: Path, tmp_path: Path, monkeypatch):
    """Fails if an audit works on disk alone: listings, ranged reads, deep reads, damage, 403, no such bucket."""
    uri = f"s3://{s3.bucket}/{tmp_path.name}/out"
    files = s3.filesystem()
    files.put(f"{whole}/", uri, recursive=True)
    for deep in (False, True):
        assert audit(open_store(uri), deep=deep).status == "sound"
    files.pipe_file(f"{uri}/{part(whole, 0).relative_to(whole)}", part(whole, 0).read_bytes()[:-50])
    files.rm_file(f"{uri}/{part(whole, 5).relative_to(whole)}")
    files.pipe_file(f"{uri}/utterances/speaker=a/x.parquet", b"x")
    found = {violation.invariant for violation in audit(open_store(uri)).violations}
    assert found == {Invariant.PART_UNREADABLE, Invariant.PUBLISHED_EARLY, Invariant.PART_MISSING, Invariant.ORPHAN}
    for nothing in (f"s3://{s3.bucket}/nothing/here", "s3://no-such-bucket/out"):
        with pytest.raises(ConfigError, match="no output"):
            audit(open_store(nothing))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ConfigError, match=r"cannot reach s3://.*access key"):
        audit(open_store(uri))
    fsspec.filesystem("s3").clear_instance_cache()


# -- the command


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, "-m", "jobs.verify", *map(str, words)]
    return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command(out, tmp_path):
    """Fails if status, lines or summary of `python -m jobs.verify` are not what scripts and people rely on."""
    done = run(out, "--deep")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines()[-1]
        == "sound: each of 16 rows is annotated once or rejected once (every value was read)"
    )
    part(out, 0).unlink()
    done = run(out)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.splitlines()[:3] == [
        "PUBLISHED_EARLY  _runs/000001/_SUCCESS  exists although 1 of 6 shards have no part",
        "PART_MISSING  utterances/speaker=a/000001-000000.parquet  is missing although plan 000001 is published",
        "",
    ]
    assert "plan 000001: unfinished: 5 of 6 shards" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("violated: 2 broken invariants")
    for name in ("_SUCCESS", "report.json"):
        (out / "_runs/000001" / name).unlink()
    (out / "rejects/000001.parquet").unlink()
    (out / "_runs/000001/report.html").write_text("a page that nobody may draw yet")
    assert run(out).stdout.startswith("PUBLISHED_EARLY  _runs/000001/report.html  exists although 1 of 6")
    (out / "_runs/000001/report.html").unlink()
    done = run(out)
    assert done.returncode == 3 and done.stdout.splitlines()[0] == "plan 000001: unfinished: 5 of 6 shards"
    done = run(tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "no output" in done.stderr


def test_the_commands_json(out, capsys):
    """Fails if the machine-readable result lacks the verdict, the violations or the counts, or is not JSON alone."""
    assert command.main([str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["exit_status"], found["violations"]) == ("sound", 0, [])
    assert [plan["rows"] for plan in found["plans"]] == [13, 3]
    part(out, 0).write_bytes(b"")
    assert command.main([str(out), "--json", "--deep"]) == 1
    found = json.loads(capsys.readouterr().out)
    (violation,) = found["violations"]
    assert violation["promise"] == "PART_UNREADABLE" and violation["key"].endswith("000001-000000.parquet")
    assert found["deep"] is True and list(violation) == ["key", "sentence", "promise"] and violation["sentence"]


@pytest.mark.parametrize("words", [[], ["--deeep", "x"], ["x", "y"], ["s4://b/x"]])
def test_a_wrong_command_line_is_answered_in_a_line(words, capsys):
    """Fails if a typing error is a traceback, or ends with the status of a broken invariant."""
    try:
        status = command.main(words)
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2 and "python -m jobs.verify: " in capsys.readouterr().err

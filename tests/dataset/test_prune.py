"""Pruning removes what no plan names, and nothing else, whatever it is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import prune as command
from jobs.prune import _age, _seconds, _size
from pipeline.dataset.plan import load_plan, plan_key
from pipeline.dataset.prune import Leftover, find_leftovers, remove_leftover
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.layout import PROBE
from pipeline.storage.cleanup import uploads, walk
from pipeline.storage.store import LocalStore, Store, open_store, require_conditional_writes
from tests.support.corpus import ROOT
from tests.support.outputs import FIRST, SECOND, finished_output, plan_rows
from tests.support.s3_server import S3Server

DAY_S = 86_400.0
HEX = "0123456789abcdef0123456789abcdef"
TOKEN = "0123456789ab"
LEFT = {
    f"_runs/000001/shards/{TOKEN}-00000.parquet": "shards of a planner that lost plan 000001",
    f"_runs/000001/shards/{TOKEN}-rejects.parquet": "shards of a planner that lost plan 000001",
    f"_runs/000003/shards/{TOKEN}-00000.parquet": "shards of a plan that was never written",
    f"utterances/speaker=a/.000001-000000.parquet.{HEX}.tmp": "temporary of a killed writer",
    f"_runs/000001/.plan.json.{HEX}.tmp": "temporary of a killed writer",
    f"rejects/.000001.parquet.{HEX}.tmp": "temporary of a killed writer",
    f"._dataset.json.{HEX}.tmp": "temporary of a killed writer",
    "_runs/_probe": "probe for conditional writes",
}
"""What may go, and what it is called."""

STAYS = [
    "notes.txt", f".notes.{HEX}.tmp", f"other/.x.{HEX}.tmp", f"other/_runs/000001/shards/{TOKEN}-00000.parquet",
    "utterances/speaker=a/part-0.parquet", "utterances/speaker=a/000009-000000.parquet", "rejects/000009.parquet",
    "utterances/speaker=a/.hidden", "utterances/speaker=a/.000001-000000.parquet.tmp", f"utterances/{HEX}.tmp",
    "_runs/000001/report.html", "_runs/000001/shards/readme.txt", "_runs/000001/shards/UPPERCASE123-00000.parquet",
    "_runs/000001/attempts/000001.json",
    "_runs/000003/report.json", "_runs/000003/_SUCCESS", "_runs/000009/notes.parquet", "_runs/_probe2",
]  # fmt: skip
"""What nobody named either, and what is none of ours or none of a killed writer's."""


def put(out: Path, key: str, content: bytes = b"left", age_s: float = 2 * DAY_S) -> Path:
    path = out / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def everything(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (1e9,) * 2)  # nothing is safe for being young
    return tmp_path / "out"


def found(store: Store) -> dict[str, Leftover]:
    return {leftover.key: leftover for leftover in find_leftovers(store, now_s=time.time())}


def test_a_finished_output_has_no_leftovers(out):
    """Fails if anything of a finished output may be removed."""
    assert found(LocalStore(out)) == {}


def test_what_goes_and_what_stays(out, capsys):
    """Fails if a leftover stays, or anything else goes: parts, plans, rejects, what plans name, what is not ours."""
    before = everything(out)
    for key in (*LEFT, *STAYS):
        put(out, key)
    assert {key: leftover.kind for key, leftover in found(LocalStore(out)).items()} == LEFT
    assert command.main([str(out), "--delete", "--older-than", "1d"]) == 0
    assert everything(out) == before | {key: hashlib.sha256(b"left").hexdigest() for key in STAYS}
    assert capsys.readouterr().out.splitlines()[-1] == f"removed {len(LEFT)} leftovers, {4 * len(LEFT)} bytes"
    assert command.main([str(out), "--delete"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_without_delete_nothing_goes(out, capsys):
    """Fails if the dry run deletes, or does not say what would go, how large and how old it is."""
    for key in LEFT:
        put(out, key, b"x" * 1500)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert command.main([str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    lines = capsys.readouterr().out.splitlines()
    assert f"would remove  _runs/_probe  1.5 kB  2d old  {LEFT['_runs/_probe']}" in lines
    assert lines[-1] == f"would remove {len(LEFT)} leftovers, 12.0 kB; add --delete to remove them"


def test_what_is_young_stays(out, capsys):
    """Fails if the temporaries, shards or probe of a job that is running now are taken from under it."""
    old = put(out, f"utterances/speaker=a/.000001-000000.parquet.{HEX}.tmp", age_s=3601)
    for key in LEFT:
        if not (out / key).exists():
            put(out, key, age_s=3000)
    assert command.main([str(out), "--delete"]) == 0
    assert old.exists()
    assert command.main([str(out), "--delete", "--older-than", "1h"]) == 0
    assert not old.exists() and all((out / key).exists() for key in LEFT if out / key != old)
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"removed 1 leftovers, 4 bytes; {len(LEFT) - 1} younger than 1h are kept"
    )


def test_a_planner_is_as_young_as_its_last_file(out):
    """Fails if the first files of a planner that writes for longer than the age limit are removed before it names them."""
    shards = "_runs/000003/shards"
    for number in range(20):
        put(out, f"{shards}/{TOKEN}-{number:05d}.parquet", age_s=60 if number == 9 else 2 * DAY_S)
    put(out, f"{shards}/ffffffffffff-00000.parquet", age_s=2 * DAY_S)
    ages = {key: leftover.age_s for key, leftover in found(LocalStore(out)).items()}
    assert len(ages) == 21
    assert [key for key, age_s in ages.items() if age_s > DAY_S] == [f"{shards}/ffffffffffff-00000.parquet"]


def test_what_a_plan_names_by_now_stays(out, tmp_path):
    """Fails if a plan that appears between the look and the deletion loses its shards."""
    store = LocalStore(out)
    plan = plan_rows(
        store, tmp_path / "late", [{"id": "late", "audio": "/a/l.wav", "text": "t", "speaker": "a", "take": 1}]
    )
    document = store.read(plan_key(plan.plan))
    (out / plan_key(plan.plan)).unlink()
    (leftover,) = found(store).values()
    assert leftover.kind == "shards of a plan that was never written"
    store.put_if_absent(plan_key(plan.plan), document)
    assert not remove_leftover(store, leftover)
    assert found(store) == {} and (out / plan.files[0][0]).exists()


def test_the_plans_after_a_gap_keep_their_files(out):
    """Fails if plans are looked for by counting up, so that those after a missing number lose their shards."""
    (out / "_runs/000001/plan.json").rename(out / "elsewhere")
    kinds = {leftover.kind for leftover in found(LocalStore(out)).values()}
    assert kinds == {"shards of a plan that was never written"}
    assert not [key for key in found(LocalStore(out)) if key.startswith("_runs/000002/")]


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b'{"format": 99}'])
def test_a_plan_that_cannot_be_read_stops_everything(out, content, capsys):
    """Fails if the shards of a damaged plan are taken for leftovers."""
    put(out, f"_runs/000001/shards/{TOKEN}-00000.parquet")
    (out / "_runs/000002/plan.json").write_bytes(content)
    before = everything(out)
    assert command.main([str(out), "--delete", "--older-than", "0s"]) == 2
    assert "000002/plan.json" in capsys.readouterr().err
    assert everything(out) == before


def test_a_folder_that_is_no_output_is_left_alone(tmp_path, capsys):
    """Fails if a mistyped path is pruned."""
    put(tmp_path, f"utterances/.x.parquet.{HEX}.tmp")
    put(tmp_path, "_runs/_probe")
    assert command.main([str(tmp_path), "--delete"]) == 2
    assert "no output" in capsys.readouterr().err and len(everything(tmp_path)) == 2
    with pytest.raises(ConfigError):
        list(find_leftovers(LocalStore(tmp_path / "none"), now_s=0.0))


def test_a_killed_planner_and_a_beaten_one(tmp_path, monkeypatch):
    """Fails if the files of real planners are not known as leftovers, or those of the winner are."""
    store = LocalStore(tmp_path / "out")
    real = LocalStore.put_if_absent

    def killed(self: LocalStore, key: str, content: bytes) -> bool:
        if key.endswith("plan.json"):
            raise KeyboardInterrupt
        return real(self, key, content)

    monkeypatch.setattr(LocalStore, "put_if_absent", killed)
    with pytest.raises(KeyboardInterrupt):
        plan_rows(store, tmp_path / "killed", [*FIRST, {"id": "bad", "audio": 5}])
    monkeypatch.undo()
    assert {leftover.kind for leftover in found(store).values()} == {"shards of a plan that was never written"}
    plan_rows(store, tmp_path / "winner", SECOND)
    left = found(store)
    assert len(left) == 2 and {one.kind for one in left.values()} == {"shards of a planner that lost plan 000001"}
    for leftover in left.values():
        assert remove_leftover(store, leftover)
        assert remove_leftover(store, leftover)  # somebody else was faster
    assert audit(store).leftovers == 0 and (tmp_path / "out" / load_plan(store, "000001").files[0][0]).exists()


def test_a_real_temporary(tmp_path, monkeypatch):
    """Fails if the store names its temporaries in another way than pruning looks for."""
    store = LocalStore(tmp_path / "out")
    plan_rows(store, tmp_path / "m", FIRST)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # what a kill does not get to do
    store.put_if_absent("utterances/speaker=a/000001-000000.parquet", b"part")
    store.put_if_absent("rejects/000001.parquet", b"rejects")
    monkeypatch.undo()
    assert [leftover.kind for leftover in found(store).values()] == ["temporary of a killed writer"] * 2


# -- on S3


def begin_upload(s3: S3Server, key: str) -> None:
    files = s3.filesystem()
    upload = files.call_s3("create_multipart_upload", Bucket=s3.bucket, Key=key)
    files.call_s3(
        "upload_part", Bucket=s3.bucket, Key=key, PartNumber=1, UploadId=upload["UploadId"], Body=b"x" * 5_000_000
    )


def test_abandoned_uploads_are_aborted(s3: S3Server, tmp_path: Path, capsys):
    """Fails if an upload nobody completed goes on costing storage, or one of another output is aborted with it."""
    prefix = tmp_path.name
    uri = f"s3://{s3.bucket}/{prefix}/out"
    store = finished_output(uri, tmp_path / "m")
    require_conditional_writes(store, PROBE)
    before = {file.key for file in walk(store)} - {"_runs/_probe"}
    begin_upload(s3, f"{prefix}/out/utterances/speaker=a/000001-000000.parquet")
    begin_upload(s3, f"{prefix}/out/elsewhere/file")
    begin_upload(s3, f"{prefix}/out2/utterances/speaker=a/000001-000000.parquet")
    assert set(found(store)) == {"_runs/_probe", "utterances/speaker=a/000001-000000.parquet"}
    assert command.main([uri, "--delete"]) == 0
    assert capsys.readouterr().out == "nothing to remove; 2 younger than 1d are kept\n"
    assert command.main([uri, "--delete", "--older-than", "0s"]) == 0
    shown = capsys.readouterr().out
    assert "multipart upload that was never completed" in shown and "5.0 MB" in shown
    assert {file.key for file in walk(store)} == before
    assert [upload.key for upload in uploads(store)] == ["elsewhere/file"]
    assert len(list(uploads(open_store(f"s3://{s3.bucket}/{prefix}/out2")))) == 1
    assert audit(store, deep=True).status == "sound"


# -- the command


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", DAY_S), ("7d", 7 * DAY_S), ("1.5h", 5400)]
)
def test_ages_are_read(text, seconds):
    """Fails if an age limit means something else than it says."""
    assert _seconds(text) == seconds


@pytest.mark.parametrize("words", [[], ["o", "--older-than", "24"], ["o", "--older-than", "-1h"], ["o", "--older-than", "soon"],
                                   ["o", "--delte"], ["o", "p"], ["o", "--older-than"]])  # fmt: skip
def test_a_wrong_command_line_deletes_nothing(words, capsys):
    """Fails if an age that was not understood is taken for some age, or a typing error is a traceback."""
    with pytest.raises(SystemExit) as exit_:
        command.main(words)
    assert exit_.value.code == 2 and "python -m jobs.prune: " in capsys.readouterr().err


def test_sizes_and_ages_are_for_people():
    """Fails if a size or age is off by a unit."""
    assert [_size(n) for n in (0, 999, 1500, 2_500_000, 3 * 10**12)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 MB",
        "3.0 TB",
    ]
    assert [_age(s) for s in (-5, 0.5, 90, 3600, 36 * 3600)] == ["0s", "0s", "1.5m", "1h", "1.5d"]


def test_the_command(out, tmp_path):
    """Fails if status or output of `python -m jobs.prune` are not what scripts and people rely on."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command_line = [sys.executable, "-m", "jobs.prune", *map(str, words)]
        return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)

    left = put(out, f"_runs/000001/shards/{TOKEN}-00000.parquet")
    done = run(out)
    assert (done.returncode, done.stderr) == (0, "") and left.exists()
    assert done.stdout.startswith(f"would remove  _runs/000001/shards/{TOKEN}-00000.parquet  4 bytes  2d old  ")
    done = run(out, "--delete", "--older-than", "7d")
    assert done.stdout == "nothing to remove; 1 younger than 7d are kept\n" and left.exists()
    done = run(out, "--delete")
    assert done.returncode == 0 and done.stdout.startswith("removed  ") and not left.exists()
    done = run(tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1

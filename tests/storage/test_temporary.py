"""Temporary folders: left by killed processes, full, or too long for Ray's sockets."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import watchdog
from pipeline.engine.cluster import _Starting, cluster
from pipeline.engine.pools import Pools
from pipeline.engine.stages import _snapshot
from pipeline.errors import ConfigError, JobError
from pipeline.manifest.hash_buckets import HashBuckets, as_keys
from pipeline.manifest.staging import Staging
from pipeline.storage.temporary import naming_full_disk, remove_abandoned, require_short_tmpdir, temporary_folder
from tests.support.cases import case
from tests.support.corpus import ROOT, rows, write_manifest

HOLDER = """
import sys, time
from pipeline.storage.temporary import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "rows.parquet").write_text("what somebody said")
    print(folder, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def tmpdir_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@contextmanager
def holder(purpose: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds a temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, purpose], cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -- what a killed process left


@pytest.mark.parametrize("purpose", ["", "models-", "spill-", "audit-"])
def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmpdir_of_ours, purpose):
    """Fails if a manifest's texts stay in TMPDIR once their process is gone, or go while it lives."""
    with holder(purpose) as (process, theirs):
        assert theirs.parent == tmpdir_of_ours and (theirs / "rows.parquet").exists()
        with temporary_folder() as ours:
            assert theirs.exists() and ours != theirs
        process.send_signal(signal.SIGKILL)
        process.wait()
        with temporary_folder() as ours:
            assert [*tmpdir_of_ours.iterdir()] == [ours]
    assert not [*tmpdir_of_ours.iterdir()]


def test_other_peoples_folders_are_left_alone(tmpdir_of_ours, monkeypatch):
    """Fails if a folder of another machine, another user, another program or a link is removed, or a fresh one without a lock."""
    elsewhere = tmpdir_of_ours / "speech-emotion-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").write_text("another-host")
    fresh = tmpdir_of_ours / "speech-emotion-fresh"
    fresh.mkdir()
    (tmpdir_of_ours / "target").mkdir()
    (tmpdir_of_ours / "speech-emotion-link").symlink_to(tmpdir_of_ours / "target")
    (tmpdir_of_ours / "speech-emotion-file").write_text("")
    before = {*tmpdir_of_ours.iterdir()}
    assert remove_abandoned() == []
    assert {*tmpdir_of_ours.iterdir()} == before
    two_days_ago = time.time() - 2 * 86_400
    os.utime(fresh, (two_days_ago, two_days_ago))
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert remove_abandoned() == []
    monkeypatch.undo()
    assert remove_abandoned(tmpdir_of_ours) == [fresh]


def test_a_driver_that_is_killed_leaves_nothing_for_good(tmpdir_of_ours, tmp_path):
    """Fails if the job itself does not clean up what a killed job left."""
    with holder("") as (process, theirs):
        process.send_signal(signal.SIGKILL)
        process.wait()
        manifest = write_manifest(tmp_path / "m.jsonl", rows(1))
        words = [
            sys.executable,
            "-m",
            "jobs.annotate",
            "--manifest",
            manifest,
            "--output",
            tmp_path / "out",
            "--dry-run",
        ]
        subprocess.run([*map(str, words)], cwd=ROOT, env=dict(os.environ), check=True, capture_output=True)
        assert not theirs.exists() and not [*tmpdir_of_ours.iterdir()]


# -- full


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Let writes past a file size fail with EFBIG, as ENOSPC would on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_under_the_keys_is_named(tmp_path):
    """Fails if numpy's error, which names no file, is what the user reads."""
    buckets = HashBuckets(tmp_path / "ids")
    buckets.add(as_keys(np.random.default_rng(5).bytes(16 * 1000)))
    with room_for(100), pytest.raises(JobError, match="set TMPDIR") as error:
        next(buckets.buckets())
    assert str(tmp_path / "ids") in str(error.value) and "MB are free" in str(error.value)


def test_a_full_disk_under_the_rows_is_named(tmp_path):
    """Fails if Arrow's error, which names no file, is what the user reads."""
    manifest = write_manifest(tmp_path / "m.jsonl", [{**row, "note": os.urandom(500).hex()} for row in rows(50)])
    staging = Staging(tmp_path / "staging")
    with room_for(2000), pytest.raises(JobError, match="set TMPDIR") as error:
        staging.read([str(manifest)], lambda table: (table, {}))
    assert str(tmp_path / "staging" / "rows-000000.parquet") in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_each_kind_of_full_is_named_and_no_other_error(tmp_path, number):
    """Fails if a quota reads otherwise than a full disk, or if another error is taken for one."""
    with pytest.raises(JobError, match=f"{tmp_path}/x: {os.strerror(number)}"), naming_full_disk(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), naming_full_disk(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(pa.ArrowInvalid), naming_full_disk(tmp_path / "x"):
        raise pa.ArrowInvalid("no")


def test_a_ray_that_finds_no_room_names_its_folder(tmp_path, monkeypatch):
    """Fails if `[Errno 28] No space left on device` is all that is said, or a slow start on a full disk hides the disk."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(JobError, match=f"cannot start Ray: {tmp_path}/ray: No space.*set TMPDIR"),
        _Starting("start Ray"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("pipeline.storage.temporary._LITTLE_BYTES", 1 << 62)
    told = io.StringIO()
    monkeypatch.setattr("pipeline.engine.cluster.require_short_tmpdir", lambda: None)  # pytest's folders are long
    monkeypatch.setattr("ray.init", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError), cluster(told):
        pass
    assert re.match(rf"warning: Ray may hang .* MB are free in {tmp_path}/ray; set RAY_TMPDIR", told.getvalue())
    slow = Exception("The current node timed out during startup")
    with pytest.raises(JobError, match=f"timed out.*only .* MB are free in {tmp_path}/ray"), _Starting("start Ray"):
        raise slow


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_is_not_started_where_it_cannot_write(tmp_path, monkeypatch, name):
    """Fails if a full or tiny TMPDIR gives a warning, and then a job that hangs at "0 of N rows"."""
    for variable in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("pipeline.storage.temporary._LEAST_BYTES", 1 << 62)
    monkeypatch.setattr("pipeline.engine.cluster.require_short_tmpdir", lambda: None)  # pytest's folders are long
    monkeypatch.setattr("ray.init", lambda **_: 1 / 0)
    told = rf"^[\d,]+ bytes are free in {tmp_path}/ray, .* Make room there, or set RAY_TMPDIR"
    with pytest.raises(JobError, match=told), cluster():
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # another machine's disk
    with pytest.raises(JobError, match="no Ray head answers"), cluster():
        pass


def test_a_disk_that_fills_up_under_ray_ends_the_job(tmp_path, monkeypatch):
    """Fails if a job whose Ray can write no more waits for ever, or ends without a word about the disk."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(watchdog, "_CHECK_EVERY_S", 0.01)
    monkeypatch.setattr("pipeline.storage.temporary._LEAST_BYTES", 1 << 62)
    detector = watchdog.StallDetector([], task_cpus=1.0, limit_s=0)
    look = partial(_snapshot, Pools("cpu", (), 0.5, 1), None, None, None)
    with (
        pytest.raises(JobError, match=f"bytes are free in {tmp_path}/ray"),
        watchdog.detecting_stalls(detector, look, lambda: 0),
    ):
        threading.Event().wait(20)


# -- too long


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [60, 107, 108, 200])
def test_a_tmpdir_too_long_for_sockets_is_refused(monkeypatch, name, length):
    """Fails if the job says that the same command goes on, or does not say what to set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/" + "t" * (length - 1))
    said = rf"^{name}=/ttt.* is {length} bytes long.*Set RAY_TMPDIR to a folder of at most 39 "
    with pytest.raises(ConfigError, match=said), cluster():
        pass


def test_the_longest_tmpdir_is_the_one_that_ray_takes(monkeypatch):
    """Fails if a TMPDIR that Ray takes is refused, is counted in characters instead of bytes, or counts beside RAY_TMPDIR."""
    from ray._private.utils import validate_socket_filepath

    for length in range(20, 60):
        with case(length):
            monkeypatch.delenv("RAY_TMPDIR", raising=False)
            folder = "/é" + "t" * (length - 3)
            monkeypatch.setenv("TMPDIR", folder)
            session = f"session_{time.strftime('%Y-%m-%d_%H-%M-%S')}_123456_{os.getpid()}"
            try:
                validate_socket_filepath(f"{folder}/ray/{session}/sockets/plasma_store")
            except OSError:
                with pytest.raises(ConfigError):
                    require_short_tmpdir()
            else:
                require_short_tmpdir()
            monkeypatch.setenv("RAY_TMPDIR", "/tmp")
            require_short_tmpdir()

"""The store and the network at their worst: a proxy before a real S3 server kills, refuses, cuts, stalls and forgets."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.plan import load_plans
from pipeline.dataset.verify.audit import audit
from pipeline.errors import JobError, Reason, RejectedRow
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.storage import filesystem, retry
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch
from pipeline.storage.retry import GaveUp, retried
from pipeline.storage.store import open_store
from tests.support import noop_job
from tests.support.corpus import AUDIO
from tests.support.fault_proxy import Fault, FaultProxy, Request, at_rate, fault_proxy
from tests.support.manifests import jsonl
from tests.support.outputs import plan_rows
from tests.support.s3_server import S3Server
from tests.support.shards import causes

ROWS = [{"id": f"r{n}", "audio": f"/a/{n}.wav", "text": f"Words {n}.", "speaker": "ab"[n % 2]} for n in range(8)]
BAD = {"id": "bad", "audio": 5}
FEW = [*ROWS[:4], BAD]
"""Rows of two shards in two partition folders, and a reject: every kind of write, for jobs that are killed at each."""


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Whatever this process reads and writes goes through it."""
    with fault_proxy(s3.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        fsspec.filesystem("s3").clear_instance_cache()
        yield made
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of minutes."""
    monkeypatch.setattr(retry, "BUDGET_S", 4.0)
    monkeypatch.setattr(filesystem, "READ_TIMEOUT_S", 1.0)


def job(manifest: Path, output: str, endpoint: str, *, kill_at: int = 0) -> int:
    """Run one job to its end, or to its death; returns its exit status."""
    process = noop_job.start(str(manifest), output, {"AWS_ENDPOINT_URL": endpoint})
    if kill_at:
        VICTIM[0] = process.pid or 0
    process.join(60)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


VICTIM = [0]


def sound(output: str) -> None:
    """Every promise kept, nothing missing."""
    found = audit(open_store(output), deep=True)
    assert not found.violations, found.violations
    assert all(state.published for state in found.plans) and found.plans


def test_a_kill_at_every_write_costs_nothing(s3: S3Server, tmp_path: Path) -> None:
    """Fails if there is a moment at which SIGKILL loses a row, doubles one, or leaves an output that cannot be finished."""
    manifest = jsonl(tmp_path / "m.jsonl", *FEW)
    with fault_proxy(s3.endpoint) as proxy:
        assert job(manifest, f"s3://{s3.bucket}/{tmp_path.name}/undisturbed", proxy.endpoint) == 0
        assert "DELETE" not in {request.method for request in proxy.requests}  # a job needs no right to delete
        writes = max(request.mutation for request in proxy.requests)
        assert writes >= 8
        deaths = 0
        for number in range(1, writes + 1):
            for moment in ("before", "after"):
                output = f"s3://{s3.bucket}/{tmp_path.name}/{number}-{moment}"
                proxy.requests.clear()

                def kill(request: Request, at: int = number) -> None:
                    if request.mutation == at:
                        os.kill(VICTIM[0], signal.SIGKILL)
                        time.sleep(0.05)

                setattr(proxy, moment, kill)
                deaths += job(manifest, output, proxy.endpoint, kill_at=number) == -signal.SIGKILL
                setattr(proxy, moment, lambda _: None)
                assert job(manifest, output, s3.endpoint) == 0
                sound(output)
    assert deaths == 2 * writes


def test_no_lost_answer_is_taken_for_a_failure_or_a_defeat(s3: S3Server, tmp_path: Path) -> None:
    """Fails if a PUT that took effect without an answer ends the job, or makes it do or count the work twice."""
    manifest = jsonl(tmp_path / "m.jsonl", *FEW)
    with fault_proxy(s3.endpoint) as proxy:
        for number in range(1, 11):
            output = f"s3://{s3.bucket}/{tmp_path.name}/{number}"
            proxy.requests.clear()
            proxy.plan = lambda request, at=number: Fault.LOST_ANSWER if request.mutation == at else None
            assert job(manifest, output, proxy.endpoint) == 0
            sound(output)
        assert len(proxy.faults) >= 8


def test_a_store_that_fails_one_call_in_twenty(s3: S3Server, tmp_path: Path) -> None:
    """Fails if 5 % of all calls failing, in every way, costs a row or the job."""
    rows = [{**row, "id": f"{row['id']}-{n}"} for n in range(6) for row in ROWS]
    manifest = jsonl(tmp_path / "m.jsonl", *rows, BAD)
    kinds = [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.RESET, Fault.LOST_ANSWER, Fault.SHORT_BODY]
    with fault_proxy(s3.endpoint) as proxy:
        proxy.plan = at_rate(0.05, kinds, seed=7)
        output = f"s3://{s3.bucket}/{tmp_path.name}/out"
        assert job(manifest, output, proxy.endpoint) == 0
        assert len(proxy.faults) >= 5
    sound(output)


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.RESET, Fault.SHORT_BODY, Fault.STALL])
@pytest.mark.usefixtures("impatient")
def test_a_fault_that_passes_costs_no_row(fault: Fault, s3: S3Server, proxy: FaultProxy) -> None:
    """Fails if audio that can be read at the second try is rejected, or half of it is taken for whole."""
    content = bytes(range(256)) * 400
    s3.filesystem().pipe_file(f"{s3.bucket}/audio/passing.wav", content)
    faulty = iter([fault, fault])
    proxy.plan = lambda request: next(faulty, None) if request.method == "GET" else None
    assert fetch(f"s3://{s3.bucket}/audio/passing.wav", max_bytes=10**6) == content
    assert len(proxy.faults) == 2


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.SHORT_BODY, Fault.STALL])
@pytest.mark.usefixtures("impatient")
def test_a_fault_that_stays_is_one_reject_within_its_budget(fault: Fault, s3: S3Server, proxy: FaultProxy) -> None:
    """Fails if a stalled or broken object is tried for ever, or ends in anything but its row's reject."""
    s3.filesystem().pipe_file(f"{s3.bucket}/audio/staying.wav", b"x" * 10_000)
    proxy.plan = lambda request: fault if request.method == "GET" else None
    started = time.monotonic()
    with pytest.raises(RejectedRow, match=r"staying\.wav failed [0-9]+ times in 4 s") as rejected:
        fetch(f"s3://{s3.bucket}/audio/staying.wav", max_bytes=10**6)
    assert rejected.value.reason == Reason.FETCH_FAILED
    assert time.monotonic() - started < 30


def test_what_is_forbidden_is_not_tried_again(s3: S3Server, proxy: FaultProxy) -> None:
    """Fails if a 403 is retried, or the look at why it came is more than one request."""
    s3.filesystem().pipe_file(f"{s3.bucket}/audio/denied.wav", b"x")
    proxy.plan = lambda _: Fault.DENIED
    with pytest.raises(RejectedRow) as rejected:
        fetch(f"s3://{s3.bucket}/audio/denied.wav", max_bytes=10)
    assert rejected.value.reason == Reason.FORBIDDEN
    assert [request.method for request in proxy.requests] == ["HEAD", "GET"]


def test_credentials_that_expire_stop_the_job(s3: S3Server, proxy: FaultProxy) -> None:
    """Fails if rows are rejected because a token ran out, or the message shows the key."""
    s3.filesystem().pipe_file(f"{s3.bucket}/audio/late.wav", b"x")
    proxy.plan = lambda _: Fault.EXPIRED
    with pytest.raises(JobError, match=r"access key …cess .*ExpiredToken.*same command") as stopped:
        fetch(f"s3://{s3.bucket}/audio/late.wav", max_bytes=10)
    assert "test-access" not in str(stopped.value)


def test_an_output_that_is_denied_names_who_asked(s3: S3Server, proxy: FaultProxy) -> None:
    """Fails if a missing right on the output ends the job with `Forbidden` and nothing else, as it did."""
    store = open_store(f"s3://{s3.bucket}/denied")
    proxy.plan = lambda _: Fault.DENIED
    for call in (lambda: store.read("x"), lambda: list(store.list("x")), lambda: store.put_if_absent("x", b"")):
        with pytest.raises(JobError, match=r"s3://\w+/denied/x: access key …cess .*not allowed"):
            call()


def test_a_job_that_may_read_nothing_stops_at_its_first_shard(s3: S3Server, proxy: FaultProxy, tmp_path: Path) -> None:
    """Fails if a missing right turns a corpus into rejects, or the message names neither who asked nor for what."""
    output = f"s3://{s3.bucket}/{tmp_path.name}"
    folder = f"s3://{s3.bucket}/closed/calls"
    rows = [{**row, "audio": f"{folder}/{n}.wav", "speaker": "a"} for n, row in enumerate(ROWS)]
    store = open_store(output)
    plan_rows(store, tmp_path / "plan", rows, shard_rows=8)
    (plan,) = load_plans(store)
    proxy.plan = lambda request: Fault.DENIED if "closed" in request.path else None
    work = Work(output, plan, AudioRoots.parse((folder,), []))
    (shard,) = plan.shards()
    table = recognise(work, shard, prepare(work, shard), lambda _: pytest.fail("nothing to recognise"))
    with pytest.raises(JobError, match=r"8 of 8 rows .*closed/calls/ by access key …cess.*--max-reject-rate 1"):
        finish(work, shard, table, {})
    assert list(store.list("utterances")) == []
    assert finish(work, shard, table, {}, max_denied=1.0).rejects == ("FORBIDDEN",) * 8


def test_a_store_that_is_gone_stops_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails if each row of a corpus waits its minute for a store that does not answer."""
    output = str(tmp_path / "out")
    store = open_store(output)
    plan_rows(store, tmp_path / "plan", [{**row, "speaker": "a"} for row in ROWS], shard_rows=8)
    (plan,) = load_plans(store)
    (shard,) = plan.shards()
    calls = []

    def gone(uri: str, **_: object) -> bytes:
        calls.append(uri)
        raise RejectedRow(Reason.FETCH_FAILED, f"{uri} failed", "fetch")

    monkeypatch.setattr("pipeline.shard.recording.fetch", gone)
    work = Work(output, plan, AudioRoots.parse(("/a",), []))
    with pytest.raises(JobError, match="5 objects in succession"):
        prepare(work, shard)
    assert 5 <= len(calls) <= 8  # the others were on their way
    assert causes(prepare(work, shard, unreachable=None)) == ["FETCH_FAILED"] * 8


def test_a_full_disk_is_said_at_once() -> None:
    """Fails if a minute is spent on trying to write where there is no room."""
    calls = []

    def full() -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        retried(full, what="writing")
    assert len(calls) == 1


def test_a_disk_that_fills_up_costs_nothing(tmp_path: Path) -> None:
    """Fails if a write that found no room leaves half a file to read, or an output that the same command cannot finish."""
    manifest, output = jsonl(tmp_path / "m.jsonl", *ROWS, BAD), tmp_path / "out"
    reached = []
    for room_bytes in range(0, 40_000, 2_000):
        process = noop_job.start(str(manifest), str(output), {}, room_bytes=room_bytes)
        process.join(60)
        reached.append(len([file for file in output.rglob("*.parquet") if file.stat().st_size]))
        for file in output.glob("utterances/**/*.parquet"):
            pq.read_table(file)
        if process.exitcode == 0:
            break
        assert process.exitcode == 1
    assert reached == sorted(reached) and len(set(reached)) > 2
    assert job(manifest, str(output), "") == 0
    sound(str(output))


def test_retries_spread_out_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if waits do not grow, have no jitter, or go on past the budget."""
    now, waits = [0.0], []
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retry.time, "sleep", sleep)

    def failing() -> None:
        raise TimeoutError

    with pytest.raises(GaveUp, match=r"reading x failed [0-9]+ times in 60 s, last with TimeoutError"):
        retried(failing, what="reading x")
    assert len(set(waits)) == len(waits) > 8
    assert sum(waits) <= 60
    assert max(waits[:3]) <= 1.6 < max(waits) <= 8


def test_readers_that_glob_during_a_run_see_whole_files(s3: S3Server, tmp_path: Path) -> None:
    """Fails if a reader can meet half a file, or a row twice, while a job writes and is killed."""
    rows = [{**row, "id": f"{row['id']}-{n}"} for n in range(10) for row in ROWS]
    manifest, output = jsonl(tmp_path / "m.jsonl", *rows), tmp_path / "out"
    stop, reads, faults = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            ids = [i for file in output.glob("utterances/**/*.parquet") for i in _ids(file)]
            reads.append(len(ids))
            if len(set(ids)) != len(ids):
                faults.append(ids)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        process = noop_job.start(str(manifest), str(output), {})
        deadline = time.monotonic() + 30
        before = len(list(output.glob("utterances/**/*.parquet")))
        while len(list(output.glob("utterances/**/*.parquet"))) < before + 8 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join(30)
    assert job(manifest, str(output), "") == 0
    stop.set()
    reader.join()
    assert not faults
    assert len(set(reads)) > 3
    sound(str(output))


def _ids(file: Path) -> list[str]:
    return pq.read_table(file, columns=["utterance_id"])["utterance_id"].to_pylist()


def test_the_audio_there_is(proxy: FaultProxy, s3: S3Server) -> None:
    """The control: through a proxy that does nothing, everything is as it is."""
    content = (AUDIO / "en_16k_pcm16.wav").read_bytes()
    s3.filesystem().pipe_file(f"{s3.bucket}/audio/plain.wav", content)
    assert fetch(f"s3://{s3.bucket}/audio/plain.wav", max_bytes=10**7) == content
    assert {request.method for request in proxy.requests} == {"HEAD", "GET"}

"""The trials of the long tier: what is done to a job, and what must be true afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from demo.models import options
from pipeline.dataset.verify.audit import audit
from pipeline.storage.store import open_store
from tests.support import noop_job
from tests.support.corpus import ROOT, command, rejects, rows, utterances, write_manifest
from tests.support.fault_proxy import Fault, Request, at_rate, fault_proxy
from tests.support.manifests import jsonl
from tests.support.processes import descendants, kill_hard, kill_role, started
from tests.support.s3_server import S3Server

_NOOP_ROWS = [{"id": f"r{n}", "audio": f"/a/{n}.wav", "text": f"Words {n}.", "speaker": "ab"[n % 2]} for n in range(16)]
_BAD = {"id": "bad", "audio": 5}
_DEADLINE_S = 180.0
_PROMPT_S = 120.0
"""Within this a job must notice that Ray's head is gone; Ray itself waits a minute for its return."""


T = TypeVar("T")
MISSED = "missed: "
"""Begins the word of a trial that was over before its disturbance came; it counts for nothing."""


class Broken(Exception):
    """A promise was not kept."""


@dataclass
class Stage:
    """What trials are played on: a server, a corpus, and what undisturbed jobs make of it."""

    folder: Path
    server: S3Server
    number: int = 0
    _expected: pa.Table | None = None

    def fresh(self, *, s3: bool) -> tuple[Path, str]:
        """A folder of this trial's own, and an output in it or in the bucket."""
        self.number += 1
        folder = self.folder / f"{self.number:05d}"
        folder.mkdir(parents=True)
        return folder, f"s3://{self.server.bucket}/{folder.name}" if s3 else str(folder / "out")

    def job(self, folder: Path, output: str) -> list[str]:
        """A real job over twelve clips with text, four to be heard, and one that is missing."""
        records = [
            *rows(12),
            *rows(4, with_text=False, prefix="heard"),
            {**rows(1, prefix="gone")[0], "audio": "/nowhere.wav"},
        ]
        manifest = write_manifest(folder / "m.jsonl", records)
        roots = ["--audio-root", str(ROOT / "tests"), "/nowhere.wav"]
        return command(manifest, output, *options(), "--shard-rows", "2", *roots)

    def expected(self) -> pa.Table:
        """The rows of an undisturbed run."""
        if self._expected is None:
            folder, output = self.fresh(s3=False)
            self._expected = _finish(self.job(folder, output), folder, output)
        return self._expected


def _finish(words: list[str], folder: Path, output: str) -> pa.Table:
    """Run a job to its end and return its rows; it must succeed."""
    with (folder / "log").open("ab") as log:
        status = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log, timeout=_DEADLINE_S, check=False).returncode
    if status != 0:
        raise Broken(f"the undisturbed job ended with {status}: {(folder / 'log').read_text()[-500:]}")
    return utterances(output)


def _sound(output: str) -> None:
    found = audit(open_store(output), deep=True)
    if found.violations:
        raise Broken("; ".join(f"{v.invariant} {v.key}: {v.sentence}" for v in found.violations[:5]))
    if not found.plans or not all(state.published for state in found.plans):
        raise Broken("the output is not finished")


def _noop(manifest: Path, output: str, endpoint: str) -> None:
    """A job without models, to its end."""
    process = noop_job.start(str(manifest), output, {"AWS_ENDPOINT_URL": endpoint})
    process.join(_DEADLINE_S)
    if process.exitcode != 0:
        process.kill()
        raise Broken(f"a job that nothing disturbs any more ended with {process.exitcode}")


def _noop_complete(stage: Stage, output: str) -> None:
    """Sound, and every row of the manifests once."""
    _sound(output)
    files = stage.server.filesystem() if output.startswith("s3://") else None
    found = sorted(utterances(output.removeprefix("s3://"), files)["recording_id"].unique().to_pylist())
    refused = sorted(str(i) for i in rejects(output.removeprefix("s3://"), files)["recording_id"].to_pylist())
    wanted = sorted(str(row["id"]) for row in _NOOP_ROWS)
    if sorted([*found, *(i for i in refused if i != "bad")]) != wanted or "bad" not in refused:
        raise Broken(f"of {len(wanted)} rows {len(found)} are utterances and {len(refused)} are rejects")


# -- roles: each plays one trial and raises Broken


def kill_at_a_write(stage: Stage, rng: random.Random) -> str:
    """SIGKILL before or after a random write to S3, 5 % of the calls failing; then again; then to the end."""
    folder, output = stage.fresh(s3=True)
    manifest = jsonl(folder / "m.jsonl", *_NOOP_ROWS, _BAD)
    deaths, killed = [], False
    with fault_proxy(stage.server.endpoint) as proxy:
        proxy.plan = at_rate(
            0.05, [Fault.SLOW_DOWN, Fault.RESET, Fault.LOST_ANSWER, Fault.SHORT_BODY], rng.randrange(2**31)
        )
        for _ in range(2):
            at, moment = rng.randint(1, 14), rng.choice(["before", "after"])
            proxy.requests.clear()
            process = noop_job.start(str(manifest), output, {"AWS_ENDPOINT_URL": proxy.endpoint})

            def kill(request: Request, at: int = at, pid: int = process.pid or 0) -> None:
                if request.mutation == at:
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(0.05)

            setattr(proxy, moment, kill)
            process.join(_DEADLINE_S)
            setattr(proxy, moment, lambda _: None)
            killed |= process.exitcode == -signal.SIGKILL
            deaths.append(f"{moment} {at}" if process.exitcode == -signal.SIGKILL else f"status {process.exitcode}")
    _noop(manifest, output, stage.server.endpoint)
    _noop_complete(stage, output)
    return ("" if killed else MISSED) + ", ".join(deaths)


def store_that_fails(stage: Stage, rng: random.Random) -> str:
    """1, 5 or 20 % of all calls fail in every way; the job ends well by itself."""
    folder, output = stage.fresh(s3=True)
    manifest = jsonl(folder / "m.jsonl", *_NOOP_ROWS, _BAD)
    rate = rng.choice([0.01, 0.05, 0.2])
    kinds = [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.RESET, Fault.LOST_ANSWER, Fault.SHORT_BODY]
    with fault_proxy(stage.server.endpoint) as proxy:
        proxy.plan = at_rate(rate, kinds, rng.randrange(2**31))
        _noop(manifest, output, proxy.endpoint)
        met = len(proxy.faults)
    _noop_complete(stage, output)
    return f"{rate:.0%}, {met} faults"


def paused_writer(stage: Stage, rng: random.Random) -> str:
    """SIGSTOP at a random write; another job does everything; SIGCONT: the zombie must change nothing."""
    folder, output = stage.fresh(s3=True)
    manifest = jsonl(folder / "m.jsonl", *_NOOP_ROWS, _BAD)
    at, moment = rng.randint(3, 12), rng.choice(["before", "after"])
    with fault_proxy(stage.server.endpoint) as proxy:
        zombie = noop_job.start(str(manifest), output, {"AWS_ENDPOINT_URL": proxy.endpoint})
        stopped = []

        def stop(request: Request, pid: int = zombie.pid or 0) -> None:
            if request.mutation == at:
                stopped.append(at)
                os.kill(pid, signal.SIGSTOP)

        setattr(proxy, moment, stop)
        deadline = time.monotonic() + 30
        while not stopped and zombie.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        _noop(manifest, output, stage.server.endpoint)
        before = {entry.key: entry.size_bytes for entry in open_store(output).list("utterances")}
        if zombie.pid and zombie.is_alive():
            os.kill(zombie.pid, signal.SIGCONT)
        zombie.join(_DEADLINE_S)
        if zombie.exitcode != 0:
            raise Broken(f"the paused writer ended with {zombie.exitcode}")
        if before != {entry.key: entry.size_bytes for entry in open_store(output).list("utterances")}:
            raise Broken("the paused writer changed the parts")
    _noop_complete(stage, output)
    return ("" if stopped else MISSED) + f"{moment} {at}"


def two_jobs(stage: Stage, rng: random.Random) -> str:
    """Two jobs on one output at once, with overlapping manifests; one may be killed."""
    folder, output = stage.fresh(s3=rng.random() < 0.5)
    manifests = [jsonl(folder / "a.jsonl", *_NOOP_ROWS[:11], _BAD), jsonl(folder / "b.jsonl", *_NOOP_ROWS[5:])]
    environment = {"AWS_ENDPOINT_URL": stage.server.endpoint}
    both = [noop_job.start(str(manifest), output, environment) for manifest in manifests]
    killed = rng.random() < 0.5
    if killed:
        time.sleep(rng.uniform(0.05, 1.0))
        both[0].kill()
    for process in both:
        process.join(_DEADLINE_S)
    if both[1].exitcode != 0 or (not killed and both[0].exitcode != 0):
        raise Broken(f"ended with {[process.exitcode for process in both]}")
    for manifest in manifests:
        _noop(manifest, output, stage.server.endpoint)
    _noop_complete(stage, output)
    return "one killed" if killed else "both to the end"


def driver_kill(stage: Stage, rng: random.Random) -> str:
    """SIGKILL of the driver of a real job at a random time; the same command; rows as undisturbed."""
    expected = stage.expected()
    folder, output = stage.fresh(s3=False)
    words = stage.job(folder, output)
    after_s = rng.uniform(4.0, 25.0)
    with started(words, folder / "log") as process:
        time.sleep(after_s)
        alive = process.poll() is None
        if alive:
            kill_hard(process)
    _same(_finish(words, folder, output), expected, output)
    return ("" if alive else MISSED) + f"after {after_s:.1f} s"


def worker_kill(stage: Stage, rng: random.Random) -> str:
    """SIGKILL of a transcriber, a recogniser or a task worker at a random time; the job ends well by itself."""
    expected = stage.expected()
    folder, output = stage.fresh(s3=False)
    role = rng.choice(["Transcribe", "Recognise", "prepare_shard"])
    with started(stage.job(folder, output), folder / "log") as process:
        time.sleep(rng.uniform(5.0, 20.0))
        killed = _awaited(lambda: kill_role(process.pid, role), process)
        status = process.wait(_DEADLINE_S)
    if status != 0:
        raise Broken(f"the job ended with {status} after the death of {killed}: {(folder / 'log').read_text()[-500:]}")
    _same(utterances(output), expected, output)
    return ("" if killed else MISSED) + f"{role}: {(killed or '').split('(')[0]}"


def head_loss(stage: Stage, rng: random.Random) -> str:
    """Ray's head or node manager is killed: the job ends soon, with 0 only if all was published; the same command finishes it."""
    expected = stage.expected()
    folder, output = stage.fresh(s3=False)
    words = stage.job(folder, output)
    name = rng.choice(["gcs_server", "raylet"])
    with started(words, folder / "log") as process:
        _awaited(lambda: [pid for pid in descendants(process.pid) if _executable(pid) == name], process)
        time.sleep(rng.uniform(2.0, 15.0))
        victims = [pid for pid in descendants(process.pid) if _executable(pid) == name]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        try:
            status = process.wait(_PROMPT_S)
        except subprocess.TimeoutExpired as error:
            raise Broken(f"{_PROMPT_S:.0f} s after the death of {name} the job still hangs") from error
        took_s = time.monotonic() - begun
        published = (Path(output) / "_runs/000001/_SUCCESS").exists()
        if victims and status == 0 and not published:
            raise Broken(f"status 0 after the death of {name}, and nothing is published")
    _same(_finish(words, folder, output), expected, output)
    return f"{name}: status {status} after {took_s:.0f} s" if victims else f"{MISSED}{name}"


def node_loss(stage: Stage, rng: random.Random) -> str:
    """A worker node of two is lost; another joins, or none does; the job ends well by itself."""
    from ray.cluster_utils import Cluster

    expected = stage.expected()
    folder, output = stage.fresh(s3=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        environment = {"RAY_ADDRESS": cluster.address}
        with started(stage.job(folder, output), folder / "log", environment) as process:
            after_s = rng.uniform(5.0, 20.0)
            time.sleep(after_s)
            ended = process.poll()
            cluster.remove_node(rng.choice(nodes), allow_graceful=False)
            if replaced := rng.random() < 0.5:
                time.sleep(rng.uniform(0.0, 10.0))
                cluster.add_node(num_cpus=1)
            status = process.wait(2 * _DEADLINE_S)  # two minutes of patience in it, where the job starts over
    finally:
        cluster.shutdown()
    if status != 0:
        raise Broken(f"the job ended with {status} after the loss of a node: {(folder / 'log').read_text()[-500:]}")
    _same(utterances(output), expected, output)
    return ("" if ended is None else MISSED) + f"after {after_s:.1f} s, {'replaced' if replaced else 'not replaced'}"


def _awaited(look: Callable[[], T], process: subprocess.Popen[bytes]) -> T:
    """What `look` finds as soon as it finds something, or when the process has ended or a minute and a half has passed."""
    deadline = time.monotonic() + _DEADLINE_S / 2
    while not (found := look()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _executable(pid: int) -> str:
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _same(found: pa.Table, expected: pa.Table, output: str) -> None:
    """The same rows as an undisturbed run, and a sound output."""
    _sound(output)
    exact = [
        "utterance_id",
        "recording_id",
        "segment_index",
        "start_s",
        "end_s",
        "text",
        "text_source",
        "label",
        "emotion",
    ]
    if not found.select(exact).equals(expected.select(exact)):
        raise Broken("rows differ from the undisturbed run's")
    worst = max(
        abs(a - b) for a, b in zip(found["confidence"].to_pylist(), expected["confidence"].to_pylist(), strict=True)
    )
    if worst > 1e-5:
        raise Broken(f"a confidence differs by {worst:g} from the undisturbed run's")
    if rejects(output)["reason"].to_pylist() != ["NOT_FOUND"]:
        raise Broken(f"rejects are {rejects(output)['reason'].to_pylist()}")


ROLES: dict[str, Callable[[Stage, random.Random], str]] = {
    role.__name__: role
    for role in (
        kill_at_a_write,
        store_that_fails,
        paused_writer,
        two_jobs,
        driver_kill,
        worker_kill,
        head_loss,
        node_loss,
    )
}

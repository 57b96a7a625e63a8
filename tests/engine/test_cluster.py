"""The same job on a cluster: submitted with `ray job submit`, and on 1 and 16 logical CPUs."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.corpus import ROOT, annotate, model_options, rows, utterances, write_manifest
from tests.support.processes import started, wait_until

_BIN = Path(sys.executable).parent
KEEP_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}
"""A node of one or two CPUs would end the worker of its tasks a second after a shard, and start it anew for the next."""


@dataclass(frozen=True)
class Head:
    dashboard: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(
    folder: Path, cpus: int, gpus: int = 0, *more: str, environment: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """A one-node cluster on loopback with a number of logical CPUs and GPUs of its own choosing; killed at the end, as a graceful
    stop takes half a minute.

    Args:
        more: options of `ray start`.
        environment: of everything on the node.
    """
    port, dashboard = free_port(), free_port()
    command = [
        str(_BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats", *more,
    ]  # fmt: skip
    log = folder / "head.log"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    common = {**token, **KEEP_WORKERS}
    with started(command, log, {"PATH": f"{_BIN}:{os.environ['PATH']}", **common, **(environment or {})}) as process:
        wait_until(lambda: _listens(port) and _listens(dashboard), process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", {"RAY_ADDRESS": f"127.0.0.1:{port}", **common})


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("cpus", [1, 16])
def test_it_runs_on_any_number_of_logical_cpus(cpus: int, tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails, by running out of time, if the steps together ask for more CPUs than there are: a deadlock."""
    manifest = write_manifest(tmp_path / "m.jsonl", [*rows(6), *rows(2, with_text=False, prefix="heard")])
    with head(tmp_path, cpus) as cluster:
        options = [*model_options(checkpoints, asr), "--shard-rows", "4"]
        annotate(manifest, tmp_path / "out", *options, env=cluster.environment)
    assert utterances(tmp_path / "out").num_rows == 8


def test_a_submitted_job_ships_its_code_and_ends_with_its_status(tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails if `ray job submit --working-dir .` cannot run the job, or hides that it failed."""
    manifest = write_manifest(tmp_path / "m.jsonl", rows(4))
    options = [*model_options(checkpoints, asr), "--shard-rows", "2"]
    with head(tmp_path, 2) as cluster:

        def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
            job = [
                "python",
                "-m",
                "jobs.annotate",
                "--manifest",
                str(manifest),
                "--output",
                str(tmp_path / "out"),
                *arguments,
            ]
            command = [
                str(_BIN / "ray"),
                "job",
                "submit",
                "--address",
                cluster.dashboard,
                "--working-dir",
                ".",
                "--",
                *job,
            ]
            environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": ""}
            return subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
            )

        done = submit(*options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "run 000001: 4 rows = 4 annotated + 0 rejected" in done.stdout
        refused = submit("--modee", "mean")
        assert refused.returncode != 0 and "--mode" in refused.stdout + refused.stderr
        relative = submit("--output", "out-of-nobody")
        assert relative.returncode != 0 and "'out-of-nobody' is a relative path" in relative.stdout + relative.stderr
    assert utterances(tmp_path / "out").num_rows == 4


def test_a_cluster_that_does_not_answer_ends_the_job(tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails if a wrong RAY_ADDRESS hangs, as ray.init does, or ends with anything but status 1 and a sentence."""
    manifest = write_manifest(tmp_path / "m.jsonl", rows(1))
    nobody = {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = annotate(manifest, tmp_path / "out", *model_options(checkpoints, asr), env=nobody, expect=1)
    assert nobody["RAY_ADDRESS"] in done.stderr and "the same command goes on" in done.stderr

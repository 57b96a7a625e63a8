"""Four jobs on one cluster: at the same time, and one after another."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray.cluster_utils import Cluster

from benchmarks.harness import Result
from benchmarks.processes import run as ran
from tests.support.noop_models import environment, models_of

_JOBS, _ROWS, _NODES, _CPUS = 4, 40, 2, 2
_SHARD_ROWS = 2
_TARGET = 1.3
_TIMEOUT_S = 900.0
_KEEP_WORKERS = {"idle_worker_killing_time_threshold_ms": 600_000}


def run(*, quick: bool) -> Result:
    """Time both on a new cluster each."""
    models, widths = models_of("text")
    jobs = 2 if quick else _JOBS
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sharing-") as folder:
        for name, at_once in (("one after another", 1), ("at the same time", jobs)):
            taken[name] = _run(Path(folder) / name.replace(" ", "-"), jobs, at_once, models, environment(widths))
    ratio = taken["at the same time"] / taken["one after another"]
    return Result(
        title="Sharing a cluster",
        columns=("jobs", "time", "ratio"),
        rows=[
            (name, f"{seconds:.0f} s", f"{seconds / taken['one after another']:.2f}") for name, seconds in taken.items()
        ],
        notes=(
            f"{jobs} jobs of {_ROWS} rows in shards of {_SHARD_ROWS}, in mode text, models that answer at once; {_NODES} nodes "
            f"of {_CPUS} logical CPUs on a machine of {len(os.sched_getaffinity(0))} cores; the start of each job is included; "
            f"load of the machine at the end {os.getloadavg()[0]:.1f}",
            f"target: {_TARGET}. Before, at commit 76a7972, four jobs at the same time made no progress in four minutes: their "
            "actors held the CPUs that the tasks needed",
            "checked in each run: status 0 and every row annotated",
        ),
        figures={"ratio": ratio},
    )


def _run(folder: Path, jobs: int, at_once: int, models: list[str], armed: Mapping[str, str]) -> float:
    folder.mkdir()
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _KEEP_WORKERS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(_NODES):
            cluster.add_node(num_cpus=_CPUS, object_store_memory=200 * 2**20)
        cluster.wait_for_nodes()
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(
                pool.map(lambda job: _job(folder, job, models, {**armed, "RAY_ADDRESS": cluster.address}), range(jobs))
            )
        return time.perf_counter() - started
    finally:
        cluster.shutdown()


def _job(folder: Path, job: int, models: list[str], armed: Mapping[str, str]) -> None:
    manifest, rows = folder / f"{job}.jsonl", []
    for number in range(_ROWS):
        rows.append(
            {"id": f"{job}-{number}", "audio": f"/audio/{number}.wav", "text": f"Sentence {number}.", "language": "en"}
        )
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "jobs.annotate",
        "--manifest",
        str(manifest),
        "--output",
        str(folder / f"out-{job}"),
    ]
    options = ["--audio-root", "/audio", "--no-page", "--shard-rows", str(_SHARD_ROWS)]
    done = ran([*command, *options, *models], env=armed, timeout_s=_TIMEOUT_S)
    done.require(f"{_ROWS} annotated + 0 rejected")

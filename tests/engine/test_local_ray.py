"""The Ray of one machine: what is left out, and that it comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.node import Node
from ray.data._internal.execution import streaming_executor
from ray.data._internal.stats import _StatsManager

from pipeline.engine.local_ray import small_ray
from pipeline.processes import FORK_SERVER
from tests.support.corpus import ROOT

NAMES = {
    Node: ("start_monitor", "start_log_monitor", "start_raylet", "start_api_server"),
    _StatsManager: (
        "gen_dataset_id_from_stats_actor",
        "register_dataset_to_stats_actor",
        "update_execution_metrics",
        "update_iteration_metrics",
    ),
    streaming_executor: ("create_cluster_autoscaler",),
}


def methods() -> list[object]:
    return [getattr(owner, name) for owner, names in NAMES.items() for name in names]


@pytest.mark.parametrize("fails", [False, True])
def test_ray_is_as_it_was_afterwards(fails):
    """Fails if a Ray that a notebook starts after a job, or after one that failed, lacks its dashboard."""
    before = methods()
    try:
        with small_ray():
            assert not {id(method) for method in methods()} & {id(method) for method in before}
            if fails:
                raise OSError
    except OSError:
        pass
    assert methods() == before


PROGRAM = """
import json, os
from pathlib import Path
import ray
from pipeline.engine.cluster import cluster

def square(row):
    above = Path(f"/proc/{os.getppid()}/cmdline").read_text()
    return {"id": row["id"] ** 2, "forked": "pipeline.processes" in above, "job": ray.get_runtime_context().get_job_id()}

with cluster():
    rows = ray.data.range(4).map(square).take_all()
    squares = sorted(row["id"] for row in rows)
    assert {row["job"] for row in rows} == {ray.get_runtime_context().get_job_id()}, rows
    assert {row["forked"] for row in rows} == {FORKED}, rows
    names = [Path(f"/proc/{each}/cmdline").read_bytes().decode() for each in os.listdir("/proc") if each.isdigit()
             and Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())]
    actors = [actor["ActorClassName"] for actor in ray._private.state.actors().values()]
print(json.dumps([squares, names, actors]))
"""


@pytest.mark.parametrize("forked", [True, False])
def test_a_dataset_runs_without_the_processes_that_nobody_uses(own_ray, tmp_path: Path, forked: bool):
    """Fails if Ray or Ray Data starts them after all, by other names in a new version, or cannot work without them; if
    workers are not forks of one process, or cannot start where that process cannot be reached."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({} if forked else {FORK_SERVER: "nobody"})}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", f"FORKED = {forked}\n{PROGRAM}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    squares, processes, actors = json.loads(done.stdout.splitlines()[-1])
    assert squares == [0, 1, 4, 9]
    started = {name for name in ("gcs_server", "raylet", "dashboard.py", "monitor.py") if name in "".join(processes)}
    assert started == {"gcs_server", "raylet"}
    assert not {"_StatsActor", "_AutoscalingCoordinatorActor"} & set(actors), actors

"""Several jobs on one cluster: shares, turns, and two jobs at once where the pools of each would fill it."""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine.pools import Resources
from pipeline.engine.sharing import Share, actors_by_job, jobs_of, most_jobs, turn
from pipeline.engine.watchdog import RestartNeeded
from tests.engine.test_pools import sized_on
from tests.support.cases import case
from tests.support.corpus import ROOT, command, rows, utterances, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.ray_head import head


def test_jobs_that_share_leave_room_for_their_tasks() -> None:
    """Fails if the pools of all jobs together can fill the nodes, so that no task feeds them and all jobs wait for ever."""
    for asr, gpus, node_cpus, nodes in itertools.product([False, True], [0.0, 1.0], [1, 2, 4, 16], [1, 2, 8]):
        resources = Resources(nodes * node_cpus, gpus * nodes, 1e15, nodes, node_cpus, 1e15 / nodes, grows=True,
                              cpus_per_gpu=node_cpus / gpus if gpus else 2.0)  # fmt: skip
        most = most_jobs(sized_on(resources, asr=asr), resources)
        for jobs in range(1, most + 1):
            with case(asr, gpus, node_cpus, nodes, jobs):
                pools = sized_on(replace(resources, jobs=jobs), asr=asr)
                held = jobs * sum(pool.start * pool.cpus for pool in pools.pools)
                assert held + nodes * pools.task_cpus <= resources.cpus + 1e-6
                assert jobs == 1 or all(pool.most == pool.start for pool in pools.pools)


def test_later_jobs_wait_for_their_turn() -> None:
    """Fails if more jobs run at the same time than have room, two jobs both wait, or the first waits for the last."""
    jobs = ["01", "02", "03", "04", "05"]
    assert [turn(jobs, job, 2) for job in jobs] == [(2, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert [turn(jobs[:1], "01", 2), turn([], "01", 2)] == [(1, 0), (1, 0)]


def test_a_share_changes_with_the_jobs() -> None:
    """Fails if a job keeps the whole cluster while another waits, restarts at once or for little, or stays small alone."""
    share = Share(1, 8.0)
    for now in (0.0, 10.0):
        share.check(2, 8.0, now)
    share.check(1, 16.0, 20.0)
    for now in (30.0, 40.0):
        share.check(2, 8.0, now)
    with pytest.raises(RestartNeeded, match="2 jobs share the cluster of 8 CPUs, 1 with 8 before"):
        share.check(2, 8.0, 50.0)
    share = Share(4, 8.0)
    for now in (0.0, 100.0, 200.0):
        share.check(3, 8.0, now)  # a third more
    share.check(2, 8.0, 300.0)
    with pytest.raises(RestartNeeded):
        share.check(1, 8.0, 400.0)


def test_who_holds_the_cluster() -> None:
    """Fails if a message names jobs that hold nothing, leaves one out, or counts actors that have ended or wait."""
    records = [
        {"JobID": job, "State": state, "ActorClassName": name}
        for job, state, name in [
            ("02", "ALIVE", "CrashTracker"), ("01", "PENDING_CREATION", "CrashTracker"), ("03", "ALIVE", "Other"),
            ("02", "ALIVE", "MapWorker(MapBatches(Recognise))"), ("02", "ALIVE", "MapWorker(MapBatches(Transcribe))"),
            ("02", "PENDING_CREATION", "MapWorker(MapBatches(Recognise))"),
        ]
    ]  # fmt: skip
    assert jobs_of(records) == ["01", "02"]
    assert actors_by_job(records, "01") == {"02": 2} and actors_by_job(records, "02") == {}


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("own_ray")
def test_two_jobs_at_once(tmp_path: Path) -> None:
    """Fails if two jobs, the pools of each of which are sized for the whole cluster, hold every CPU and wait for each other."""
    models, widths = models_of("text")
    options = [*models, "--language", "en", "--shard-rows", "2", "--audio-root", "/"]
    with head(tmp_path, 2) as cluster:
        armed = {**cluster.environment, **environment(widths)}
        jobs = []
        for name in ("a", "b"):
            manifest = write_manifest(tmp_path / f"{name}.jsonl", rows(20, prefix=name))
            with (tmp_path / f"{name}.log").open("wb") as log:
                words = command(manifest, tmp_path / name, *options)
                jobs.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **armed}, stdout=log, stderr=log))
        try:
            for name, job in zip("ab", jobs, strict=True):
                assert job.wait(400) == 0, (tmp_path / f"{name}.log").read_text()
        finally:
            for job in jobs:
                job.kill()
    assert [utterances(tmp_path / name).num_rows for name in "ab"] == [20, 20]

"""How long a job waits for workers that cannot start."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import pytest

from pipeline.engine import watchdog
from pipeline.engine.pools import Pool
from pipeline.engine.watchdog import (
    CRASHED,
    MOST_DEATHS,
    OUT_OF_MEMORY,
    TASKS,
    ActorState,
    ClusterSnapshot,
    DeadWorker,
    RestartNeeded,
    StallDetector,
    deaths_by_stage,
    detecting_stalls,
)
from pipeline.errors import JobError
from tests.support import lethal_hook
from tests.support.corpus import ROOT, annotate, rows, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.ray_head import head

POOLS = [Pool(stage, 1, 2, None, cpus=1.0, gpus=0.5, memory_bytes=0) for stage in ("transcribe", "recognise")]
SMALL = {"head": (4.0, 0.0, 8e9)}
LARGE = {"head": (4.0, 0.0, 8e9), "gpu": (8.0, 1.0, 8e9)}
RUNNING = {"transcribe": 2, "recognise": 2}


def snapshot(alive=None, waits=None, under_way=1, nodes=None, *, deaths=None, causes=None) -> ClusterSnapshot:
    return ClusterSnapshot(
        RUNNING if alive is None else alive, waits or {}, under_way, nodes or LARGE, deaths or {}, causes or {}
    )


def detector(limit_s: float = 600.0) -> StallDetector:
    return StallDetector(POOLS, task_cpus=1.0, limit_s=limit_s)


NO_CARD = snapshot(alive={"transcribe": 0, "recognise": 0}, waits=RUNNING, nodes=SMALL, under_way=1)


def test_a_pool_without_an_actor_ends_the_job_and_says_what_is_missing():
    """Fails if a job whose actors fit nowhere waits for ever, ends early, or does not name what is asked for and there."""
    watched = detector()
    watched.check(NO_CARD, 0, 0.0)
    watched.check(NO_CARD, 0, 599.0)
    with pytest.raises(JobError) as error:
        watched.check(NO_CARD, 0, 601.0)
    said = str(error.value)
    assert "no transcribe actor runs" in said and "1 CPU and 0.5 GPUs" in said and "4 CPUs and 0 GPUs on 1 node" in said
    assert "no node is large enough" in said and "--wait-for-workers-s" in said


def test_models_too_large_for_every_node_are_named():
    """Fails if a pool that waits for memory reads as one whose place is taken."""
    pool = Pool("recognise", 1, 1, None, cpus=1.0, gpus=0.0, memory_bytes=int(9e9))
    watched = StallDetector([pool], task_cpus=1.0, limit_s=600.0)
    stuck = snapshot(alive={}, waits={"recognise": 1})
    watched.check(stuck, 0, 0.0)
    with pytest.raises(JobError, match=r"1 CPU and 0 GPUs and 9 GB; .* and no node is large enough"):
        watched.check(stuck, 0, 601.0)


def test_actors_that_fit_but_do_not_start_are_told_apart():
    """Fails if a broken runtime environment reads as a cluster that is too small."""
    watched = detector()
    stuck = snapshot(alive={"transcribe": 2, "recognise": 0}, waits={"recognise": 2})
    watched.check(stuck, 0, 0.0)
    with pytest.raises(JobError, match=r"no recognise actor runs.*enough for one.*die at their start"):
        watched.check(stuck, 0, 601.0)


@pytest.mark.parametrize(
    ("later", "finished"),
    [
        (snapshot(alive={"transcribe": 1, "recognise": 0}, waits={"transcribe": 1, "recognise": 2}), 0),
        (snapshot(alive={}, waits=RUNNING, nodes={**SMALL, "new": (1.0, 0.0, 8e9)}), 0),
        (NO_CARD, 1),
    ],
    ids=["an actor starts", "a node joins", "a shard is finished"],
)
def test_whatever_moves_starts_the_wait_anew(later, finished):
    """Fails if a job is ended while an autoscaler brings machines, or while it goes on slowly."""
    watched = detector()
    watched.check(NO_CARD, 0, 0.0)
    watched.check(later, finished, 590.0)
    watched.check(later, finished, 1100.0)
    with pytest.raises(JobError):
        watched.check(later, finished, 1191.0)


def test_a_long_shard_is_no_stuck_job():
    """Fails if hours over one shard, or a pool that is through and gone, end the job."""
    for unchanging in (snapshot(), snapshot(alive={"recognise": 1}), snapshot(waits={"transcribe": 7})):
        watched = detector()
        for now in range(0, 100_000, 500):
            watched.check(unchanging, 3, float(now))


def test_idle_workers_end_the_job():
    """Fails if a job waits for ever when the tasks that would feed its actors find no place."""
    watched = detector()
    watched.check(snapshot(under_way=0), 0, 0.0)
    with pytest.raises(JobError, match="no stage is processing a shard: each task needs 1 CPU"):
        watched.check(snapshot(under_way=0), 0, 601.0)


NODE_LOST = snapshot(alive={"transcribe": 0, "recognise": 2}, waits={"transcribe": 2}, nodes=SMALL)


def test_what_hangs_after_a_loss_starts_over():
    """Fails if the actors of a lost node may hold for an hour the place that another stage needs, or work goes with them."""
    watched = detector()
    watched.check(snapshot(), 0, 0.0)
    watched.check(snapshot(nodes=SMALL), 5, 5000.0)
    watched.check(NODE_LOST, 5, 5010.0)
    watched.check(NODE_LOST, 5, 5100.0)
    with pytest.raises(RestartNeeded, match="no transcribe actor runs"):
        watched.check(NODE_LOST, 5, 5130.0)


def test_it_starts_over_once_for_each_loss():
    """Fails if a job loads its models for ever, each time to hang again."""
    watched = detector()  # of the next attempt, which knows only the nodes that are left
    watched.check(NODE_LOST, 5, 0.0)
    watched.check(NODE_LOST, 5, 590.0)
    with pytest.raises(JobError):
        watched.check(NODE_LOST, 5, 601.0)


def test_it_warns_and_never_ends_where_that_is_asked_for(caplog):
    """Fails if nobody is told for what a job waits, if it is said every few seconds, or if 0 is not for ever."""
    watched = detector(limit_s=0)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        for now in range(0, 3600, 10):
            watched.check(NO_CARD, 0, float(now))
    assert len(caplog.records) == 6
    assert (
        "no transcribe actor runs" in caplog.messages[0]
        and "without a limit (--wait-for-workers-s)" in caplog.messages[0]
    )


def dying(stage: str, deaths: int, cause: str, alive: int = 0) -> ClusterSnapshot:
    """One look at a pool of two actors that die; the other pool runs."""
    other = {"transcribe": "recognise", "recognise": "transcribe"}[stage]
    return snapshot({stage: alive, other: 2}, {stage: 2 - alive}, deaths={stage: deaths}, causes={stage: cause})


@pytest.mark.parametrize("cause", [OUT_OF_MEMORY, CRASHED])
@pytest.mark.parametrize("stage", ["transcribe", "recognise"])
def test_actors_that_die_as_they_start_are_named_and_end_the_job(caplog, stage, cause):
    """Fails if actors killed for lack of memory are restarted in silence, or for the hour that machines are waited for."""
    pools = [Pool(name, 1, 2, None, 1.0, 0.0, memory_bytes=int(9e9), model_bytes=int(4e9)) for name in RUNNING]
    watched = StallDetector(pools, task_cpus=1.0, limit_s=3600.0)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        watched.check(dying(stage, 1, cause), 0, 0.0)
        assert f"1 {stage} actor died" in caplog.text and cause in caplog.text
        assert "models of 4 GB" in caplog.text and "requests 9 GB" in caplog.text
        watched.check(dying(stage, 2 * MOST_DEATHS - 1, cause), 0, 60.0)
        assert len(caplog.records) == 1
    with pytest.raises(JobError, match=f"6 {stage} actors died; .* 9 GB.*No {stage} actor survives its start") as error:
        watched.check(dying(stage, 2 * MOST_DEATHS, cause), 0, 70.0)
    assert cause in str(error.value)


def test_actors_that_die_end_no_job_that_can_go_on(caplog):
    """Fails if one actor too many for the memory ends a job whose others run, or if nobody is told of it again."""
    watched = detector()
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        for now in range(0, 6000, 10):
            watched.check(dying("recognise", 1 + now // 10, OUT_OF_MEMORY, alive=1), 0, float(now))
    assert len(caplog.records) == 10 and "60 recognise actors died" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("limit_s", "later"), [(0.0, LARGE), (7200.0, SMALL)], ids=["waits for ever", "a node was lost"]
)
def test_deaths_end_no_job_that_waits_or_starts_over(limit_s, later):
    """Fails if a job that was asked to wait for ever ends, or one whose actors died with their node."""
    watched = detector(limit_s)
    for now, nodes in ((0.0, LARGE), (50.0, later), (110.0, later)):
        watched.check(snapshot({"transcribe": 2}, {"recognise": 2}, nodes=nodes, deaths={"recognise": 99}), 0, now)


def test_workers_that_die_with_a_shard_in_hand_are_told(caplog):
    """Fails if tasks, which Ray tries again for ever, are killed for lack of memory and nobody is told."""
    watched = detector()
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        for now in range(0, 610, 10):
            watched.check(snapshot(deaths={TASKS: 2 + now // 10}, causes={TASKS: OUT_OF_MEMORY}), 0, float(now))
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "warning: 2 workers that prepare and commit shards died",
        "warning: 60 workers that prepare and commit shards died",
    ]


def actor(stage: str, restarts: int, pid: int, state: str = "RESTARTING", node: str = "n1") -> ActorState:
    return ActorState(stage, state, restarts, node, pid)


def test_deaths_are_counted_by_stage_with_their_cause():
    """Fails if a death is booked to another stage, an actor that has left the pool counts, or a pid of another node does."""
    actors = [
        actor("transcribe", 2, 11),
        actor("recognise", 1, 12),
        actor("recognise", 5, 13, state="DEAD"),
        actor("recognise", 0, 14, state="ALIVE"),
    ]
    dead = [
        DeadWorker("n1", 11, OUT_OF_MEMORY),
        DeadWorker("n2", 12, OUT_OF_MEMORY),
        DeadWorker("n1", 12, CRASHED),
        *[DeadWorker("n1", 90 + n, OUT_OF_MEMORY) for n in range(7)],
    ]
    deaths, causes = deaths_by_stage(actors, dead, RUNNING)
    assert deaths == {"transcribe": 2, "recognise": 1, TASKS: 2}
    assert causes == {"transcribe": OUT_OF_MEMORY, "recognise": CRASHED, TASKS: OUT_OF_MEMORY}
    assert deaths_by_stage([], [], RUNNING) == ({"transcribe": 0, "recognise": 0, TASKS: 0}, {})


def test_the_block_is_interrupted_wherever_it_waits(monkeypatch):
    """Fails if a main thread that waits for Ray is not woken, or is woken by something else than the JobError."""
    monkeypatch.setattr(watchdog, "_CHECK_EVERY_S", 0.02)
    started = time.monotonic()
    with (
        pytest.raises(JobError, match="no transcribe actor"),
        detecting_stalls(detector(0.1), lambda: NO_CARD, lambda: 0),
    ):
        threading.Event().wait(30)
    assert time.monotonic() - started < 10
    monkeypatch.setattr(watchdog, "_WARN_AFTER_S", 0.05)
    looks = iter([snapshot(), *[NODE_LOST] * 1000])
    with pytest.raises(RestartNeeded), detecting_stalls(detector(), lambda: next(looks), lambda: 0):
        threading.Event().wait(30)
    with pytest.raises(KeyboardInterrupt), detecting_stalls(detector(), lambda: None, lambda: 0):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("own_ray")
def test_a_job_whose_workers_cannot_start_ends(tmp_path: Path) -> None:
    """Fails if the job stays at "0 of N rows" for ever on a cluster without the GPUs it asks for, or whose workers die."""
    manifest = write_manifest(tmp_path / "m.jsonl", rows(4))
    models, widths = models_of("text")
    options = [*models, "--language", "en", "--wait-for-workers-s", "5"]
    broken = {"runtime_env": {"py_executable": "/bin/false", "env_vars": {"PYTHONPATH": str(ROOT)}}}
    with head(tmp_path, 2) as cluster:
        armed = {**cluster.environment, **environment(widths)}
        on_gpus = [*options, "--device", "cuda"]
        done = annotate(manifest, tmp_path / "gpus", *on_gpus, env=armed, expect=1)
        assert "each needs 1 CPU and 1 GPU; the cluster has 2 CPUs and 0 GPUs on 1 node" in done.stderr
        armed["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(broken)
        done = annotate(manifest, tmp_path / "broken", *options, env=armed, expect=1)
        assert "no recognise actor runs" in done.stderr and "workers die at their start" in done.stderr
        armed |= lethal_hook.environment(str(ROOT), "arm_start")
        done = annotate(manifest, tmp_path / "dying", *options, "--wait-for-workers-s", "200", env=armed, expect=1)
        assert "No recognise actor survives its start" in done.stderr and CRASHED in done.stderr
        assert "from Ray" in done.stderr and "run the same command again" in done.stderr

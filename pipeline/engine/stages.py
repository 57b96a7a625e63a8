"""The stages of a run as a Ray Data pipeline.

    shards -> prepare (CPU tasks) -> transcribe (actor pool) -> recognise (actor pool) -> commit (CPU tasks)

One shard is one row of one block in all stages, and all shards are one execution, so models are loaded once. On one machine
pools have a fixed size; on a cluster they follow its nodes (pools.py). Each stage requests a share of the logical CPUs small
enough that all stages fit on a machine with one CPU.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.core.generated import common_pb2, gcs_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import JobConfig
from pipeline.dataset.plan import Shard
from pipeline.engine import transport
from pipeline.engine.cluster import is_embedded, living_nodes, resources_of
from pipeline.engine.metrics import Metrics
from pipeline.engine.pools import Pools, Resources, size_pools
from pipeline.engine.sharing import Share, actors_by_job, all_actors, jobs_of, most_jobs, wait_for_turn
from pipeline.engine.source import has_stage, shard_blocks
from pipeline.engine.watchdog import (
    CRASHED,
    OUT_OF_MEMORY,
    ActorState,
    ClusterSnapshot,
    DeadWorker,
    RestartNeeded,
    StallDetector,
    deaths_by_stage,
    detecting_stalls,
)
from pipeline.errors import ConfigError, JobError
from pipeline.models import roles
from pipeline.shard.commit import MAX_DENIED, Finished, finish
from pipeline.shard.context import Work
from pipeline.shard.crashes import CrashTracker, count_deaths
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe
from pipeline.storage.temporary import require_room_for_ray

_log = logging.getLogger(__name__)
_TRACKER_ANSWERS_WITHIN_S = 5.0


def run_shards(
    work: Work, shards: Iterable[Shard], pools: Pools, config: JobConfig, on_finished: Callable[[Finished], None]
) -> None:
    """Annotate and commit shards, and call back once for each, in no order. Must be called in the main thread.

    A job that hangs after losing a node is restarted with pools sized for the remaining nodes.

    Raises: JobError naming the cause, such as too long a wait for workers. Committed shards are kept.
    """
    remaining = {shard.number: shard for shard in shards}
    # on the driver's node: the crash tracker must not die with an actor's node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tracker = ray.remote(CrashTracker).options(num_cpus=0, scheduling_strategy=here).remote()
    metrics = Metrics(work.output, work.plan)
    total = len(remaining)
    share = Share(1, 0.0)
    while remaining:
        if not is_embedded():
            pools, share = _shared(work, pools, config, len(remaining), metrics)
        share_of_stages = pools.reserved_share(spread=has_stage(len(remaining)))
        ray.data.DataContext.get_current().op_resource_reservation_ratio = share_of_stages
        detector = StallDetector(pools.pools, task_cpus=pools.task_cpus, limit_s=config.wait_for_workers_s)
        try:
            with detecting_stalls(
                detector, partial(_snapshot, pools, tracker, metrics, share), lambda: total - len(remaining)
            ):
                for table in _pipeline(work, remaining.values(), pools, config, tracker).iter_batches(
                    batch_size=None, batch_format="pyarrow"
                ):
                    for line in pa.table(table)["finished"].to_pylist():
                        shard = Finished(**json.loads(line))
                        del remaining[shard.shard]
                        metrics.count(shard)
                        on_finished(shard)
        except RestartNeeded as stuck:
            _log.warning("warning: %s", stuck)
        except ray.exceptions.RayError as error:
            if is_embedded():
                require_room_for_ray()
            raise _root_cause(error, tracker) from error
    metrics.finish()


def _shared(work: Work, pools: Pools, config: JobConfig, num_shards: int, metrics: Metrics) -> tuple[Pools, Share]:
    """Return pools for the present nodes and jobs; waits until it is this job's turn."""

    def look() -> Resources:
        # a job that waits has metrics, and is not taken for one whose driver is gone
        metrics.actors({pool.stage: {"asked": 0, "alive": 0, "waiting": 0} for pool in pools.pools})
        return _present()

    on_device = config.model_copy(update={"device": pools.device})
    jobs = wait_for_turn(size_pools(on_device, _present(), work.plan, num_shards), look)
    resources = replace(_present(), jobs=jobs)
    return size_pools(on_device, resources, work.plan, num_shards), Share(jobs, resources.cpus)


def _present() -> Resources:
    return resources_of(living_nodes(), grows=True)


def _snapshot(pools: Pools, tracker: Any, metrics: Metrics, share: Share) -> ClusterSnapshot | None:  # noqa: ANN401 - Ray's handles are untyped
    """Take a cluster snapshot: the state of actors and nodes.

    Returns: None when Ray does not answer.
    Raises: JobError when the disk of a Ray that this job started is full.
    """
    if is_embedded():
        require_room_for_ray()
    counts = {pool.stage: {"asked": 0, "alive": 0, "waiting": 0} for pool in pools.pools}
    try:
        everyone = all_actors() if not is_embedded() else []
        actors = _actors()
        deaths, causes = deaths_by_stage(actors, _dead_workers(), counts)
        nodes = {node["NodeID"]: node["Resources"] for node in living_nodes()}
    except (ray.exceptions.RayError, RuntimeError, OSError):
        return None
    try:
        under_way = int(ray.get(tracker.under_way.remote(set(nodes)), timeout=_TRACKER_ANSWERS_WITHIN_S))
    except ray.exceptions.RayError:  # the crash tracker's actor cannot start either
        under_way = 0
    for actor in actors:
        if actor.stage in counts and actor.state != "DEAD":
            counts[actor.stage]["asked"] += 1
            counts[actor.stage]["alive" if actor.state == "ALIVE" else "waiting"] += 1
    metrics.actors(counts)
    if everyone:
        present = _present()
        share.check(min(len(jobs_of(everyone)), most_jobs(pools, present)), present.cpus, time.monotonic())
    return ClusterSnapshot(
        alive={stage: states["alive"] for stage, states in counts.items()},
        waiting={stage: states["waiting"] for stage, states in counts.items()},
        under_way=under_way,
        nodes={id_: tuple(node.get(name, 0.0) for name in ("CPU", "GPU", "memory")) for id_, node in nodes.items()},
        deaths=deaths,
        causes=causes,
        others=actors_by_job(everyone, ray.get_runtime_context().get_job_id()),
    )


def _actors() -> list[ActorState]:
    """Return the job's actors; those of a pool are recognised by the class that Ray Data runs in them."""
    # private API: there is no public one for a cluster without a dashboard; ray is pinned to one version
    actors = ray._private.state.actors(job_id=ray.get_runtime_context().job_id).values()
    stages = {f"MapWorker(MapBatches({actor.__name__}))": stage for stage, actor in ACTORS.items()}
    return [
        ActorState(
            stage=stages.get(actor["ActorClassName"]),
            state=actor["State"],
            restarts=actor["NumRestarts"],
            node=actor["Address"]["NodeID"],
            pid=actor["Pid"],
        )
        for actor in actors
    ]


def _dead_workers() -> list[DeadWorker]:
    """Return the job's worker processes that died, in the order of their deaths."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    workers = map(gcs_pb2.WorkerTableData.FromString, accessor.get_worker_table())  # type: ignore[attr-defined]
    causes = {common_pb2.NODE_OUT_OF_MEMORY: OUT_OF_MEMORY, common_pb2.SYSTEM_ERROR: CRASHED}  # type: ignore[attr-defined]
    ours = ray.get_runtime_context().get_job_id()
    dead = [w for w in workers if not w.is_alive and w.exit_type in causes and w.job_id.hex() == ours]
    return [
        DeadWorker(w.worker_address.node_id.hex(), w.pid, causes[w.exit_type])
        for w in sorted(dead, key=lambda worker: worker.end_time_ms)
    ]


def _pipeline(
    work: Work,
    shards: Iterable[Shard],
    pools: Pools,
    config: JobConfig,
    tracker: Any,  # noqa: ANN401 - as above
) -> ray.data.Dataset:
    """Build the lazy dataset of one execution, one block per shard.

    Ray's dashboard shows the names of the functions and classes.
    """
    max_denied = MAX_DENIED if config.max_reject_rate is None else config.max_reject_rate
    # one row is one shard; Ray refuses whole blocks as batches for stages with GPUs
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # each new process spends two seconds on imports: on one machine, start no more of them than cores
    limit = {"concurrency": max(1, int(ray.cluster_resources().get("CPU", 1)))} if is_embedded() else {}  # type: ignore[no-untyped-call]
    shared = {"work": work, "max_denied": max_denied, "tracker": tracker}
    task: dict[str, Any] = {**one_shard, **limit, "num_cpus": pools.task_cpus, "fn_kwargs": shared}
    loaded = {"device": pools.device, "num_threads": pools.num_threads, "max_batch_s": config.max_batch_s}
    dataset = shard_blocks(shards)
    dataset.set_name(f"annotate_{work.plan.plan}")
    dataset = dataset.map_batches(prepare_shard, **task)  # type: ignore[arg-type]
    for pool in pools.pools:
        dataset = dataset.map_batches(
            ACTORS[pool.stage],
            fn_constructor_kwargs={"work": work, "tracker": tracker, **loaded, "gpu_share": min(1.0, pool.gpus)},
            compute=ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most, initial_size=pool.start),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            memory=pool.memory_bytes or None,
            **one_shard,
        )
    return dataset.map_batches(commit_shard, **task)  # type: ignore[arg-type]


def _root_cause(error: BaseException, tracker: Any) -> JobError | ConfigError:  # noqa: ANN401 - as above
    """Return the error of the step or model that failed, else Ray's own error as a JobError.

    Ray Data pickles errors without their cause, appends advice to their arguments, and keeps those of an actor's start only
    as text. So a step reports its error to the crash tracker.
    """
    try:
        failure: JobError | ConfigError | None = ray.get(tracker.failure.remote(), timeout=_TRACKER_ANSWERS_WITHIN_S)
    except ray.exceptions.RayError:
        failure = None
    if failure is not None:
        return failure
    lines = str(error).strip().splitlines()
    return JobError(f"{type(error).__name__}: {lines[-1] if lines else ''}")


@dataclass(frozen=True, slots=True)
class _Reporting:
    """Context manager that reports the error of a step, or of an actor's start, to the crash tracker."""

    tracker: Any

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, Exception):
            return
        ours = error if isinstance(error, (JobError, ConfigError)) else JobError(f"{type(error).__name__}: {error}")
        with suppress(ray.exceptions.RayError):
            ray.get(self.tracker.fail.remote(ours), timeout=_TRACKER_ANSWERS_WITHIN_S)


def prepare_shard(block: pa.Table, work: Work, max_denied: float, tracker: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Fetch, decode and segment one shard."""
    envelope = transport.envelope_of(block)
    watch = _RayWatch(tracker, f"prepare {envelope.shard.name}")
    with _Reporting(tracker), envelope.stage("prepare") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        lenient: dict[str, Any] = {} if max_denied < 1 else {"unreachable": None}
        table = prepare(work, envelope.shard, figures=counted, **lenient)
    watch.end()
    return envelope.pack(table)


def commit_shard(block: pa.Table, work: Work, max_denied: float, tracker: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Commit one shard. Returns: a block with its outcome only."""
    envelope, table = transport.unpack(block)
    watch = _RayWatch(tracker, f"commit {envelope.shard.name}")
    stage_s, figures = dict(envelope.stage_s), dict(envelope.figures)
    with _Reporting(tracker), envelope.stage("commit") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        finished = finish(work, envelope.shard, table, stage_s, figures=figures, max_denied=max_denied)
    watch.end()
    return pa.table({"finished": [json.dumps(asdict(replace(finished, figures=envelope.figures)))]})


@dataclass(slots=True)
class _RayWatch:
    """A `Watch` that reports to the run's crash tracker, an actor."""

    tracker: Any
    step: str
    restarted: bool = False

    def begin(self) -> dict[int, int] | None:
        node = ray.get_runtime_context().get_node_id()
        deaths: dict[int, list[str]] | None = ray.get(self.tracker.begin.remote(self.step, node))
        self.restarted = deaths is not None
        return count_deaths(deaths, {node["NodeID"] for node in living_nodes()} if deaths else ())

    def enter(self, line: int) -> None:
        ray.get(self.tracker.enter.remote(self.step, line))

    def end(self) -> None:
        self.tracker.end.remote(self.step)


class _ModelActor:
    """Base class of actors that hold models. Subclasses load them before the first block, so failures appear early."""

    def __init__(self, *, work: Work, tracker: Any, **loaded: Any) -> None:  # noqa: ANN401 - as above
        self._work = work
        self._tracker = tracker
        self._models = roles.Loaded(work.plan.models, settings=work.plan.settings, **loaded)

    def _run(
        self, name: str, step: Callable[..., pa.Table], model_for: Callable[..., Any], block: pa.Table
    ) -> pa.Table:
        envelope, table = transport.unpack(block)
        watch = _RayWatch(self._tracker, f"{name} {envelope.shard.name}")
        with _Reporting(self._tracker), envelope.stage(name) as counted:
            table = step(self._work, envelope.shard, table, model_for, watch)
            counted |= {"restarts": float(watch.restarted), **self._models.take_figures()}
        return envelope.pack(table)


class Transcribe(_ModelActor):
    """The actor of the transcription pool."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        with _Reporting(self._tracker):
            self._models.load_transcribers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Transcribe one shard."""
        return self._run("transcribe", transcribe, self._models.transcriber_for, block)


class Recognise(_ModelActor):
    """The actor of the recognition pool."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        with _Reporting(self._tracker):
            self._models.load_recognisers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Recognise one shard. Returns: a block without audio."""
        return self._run("recognise", recognise, self._models.recogniser_for, block)


ACTORS: dict[str, type[_ModelActor]] = {"transcribe": Transcribe, "recognise": Recognise}
"""The actor class of each pool's stage."""

"""The stages of a run as a Ray Data pipeline. With metrics.py, the only module that imports ray.

    shards -> prepare (CPU tasks) -> transcribe (actor pool) -> recognise (actor pool) -> commit (CPU tasks)

One shard is one row of one block in all stages. On one machine pools have a fixed size; on a cluster they follow its nodes
(pools.py). Each stage requests a share of the logical CPUs small enough that all stages fit on a machine with one CPU.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
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
from pipeline.engine.pools import Pools, size_pools
from pipeline.engine.watchdog import (
    CRASHED,
    OUT_OF_MEMORY,
    DeadWorker,
    Patience,
    Seen,
    StartOver,
    bounded,
    deaths_by_stage,
    is_of_stage,
)
from pipeline.errors import JobError
from pipeline.models import roles
from pipeline.shard.commit import MAX_DENIED, Finished, finish
from pipeline.shard.context import Work
from pipeline.shard.crashes import CrashTracker, count_deaths
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe

_log = logging.getLogger(__name__)
_SHARDS_PER_WAVE = 4096
"""Shards handed to Ray Data at once: enough to keep every pool busy, few enough for its driver-side bookkeeping."""
_LEDGER_ANSWERS_WITHIN_S = 5.0
_OUR_ERROR = re.compile(r"^pipeline\.errors\.(?:JobError|ConfigError): (.*)$", re.MULTILINE)
_ANY_ERROR = re.compile(r"^((?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception): .*)$", re.MULTILINE)


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
    ledger = ray.remote(CrashTracker).options(num_cpus=0, scheduling_strategy=here).remote()
    metrics = Metrics(work.output, work.plan)
    total = len(remaining)
    while remaining:
        wave = tuple(islice(remaining.values(), _SHARDS_PER_WAVE))
        ray.data.DataContext.get_current().op_resource_reservation_ratio = pools.reserved_share
        patience = Patience(pools.pools, task_cpus=pools.task_cpus, limit_s=config.wait_for_workers_s)
        try:
            with bounded(patience, partial(_look, pools, ledger, metrics), lambda: total - len(remaining)):
                for table in _pipeline(work, wave, pools, config, ledger).iter_batches(
                    batch_size=None, batch_format="pyarrow"
                ):
                    for line in pa.table(table)["finished"].to_pylist():
                        shard = Finished(**json.loads(line))
                        del remaining[shard.shard]
                        metrics.count(shard)
                        on_finished(shard)
        except StartOver as stuck:
            on_device = config.model_copy(update={"device": pools.device})
            pools = size_pools(on_device, resources_of(living_nodes(), grows=True), work.plan, len(remaining))
            _log.warning("warning: %s", stuck)
        except ray.exceptions.RayError as error:
            raise JobError(_root_cause(error)) from error


def _look(pools: Pools, ledger: Any, metrics: Metrics) -> Seen | None:  # noqa: ANN401 - Ray's handles are untyped
    """Take a cluster snapshot: the state of actors and nodes. Returns: None when Ray does not answer."""
    counts = {pool.stage: {"asked": 0, "alive": 0, "waiting": 0} for pool in pools.pools}
    try:
        # private API: there is no public one for a cluster without a dashboard; ray is pinned to one version
        actors = ray._private.state.actors(job_id=ray.get_runtime_context().job_id).values()
        deaths, causes = deaths_by_stage(actors, _dead_workers(), counts)
        nodes = {node["NodeID"]: node["Resources"] for node in living_nodes()}
    except (ray.exceptions.RayError, RuntimeError, OSError):
        return None
    try:
        under_way = int(ray.get(ledger.under_way.remote(set(nodes)), timeout=_LEDGER_ANSWERS_WITHIN_S))
    except ray.exceptions.RayError:  # the crash tracker's actor cannot start either
        under_way = 0
    for actor in actors:
        for stage, states in counts.items():
            if is_of_stage(actor, stage) and actor["State"] != "DEAD":
                states["asked"] += 1
                states["alive" if actor["State"] == "ALIVE" else "waiting"] += 1
    metrics.actors(counts)
    return Seen(
        alive={stage: states["alive"] for stage, states in counts.items()},
        waiting={stage: states["waiting"] for stage, states in counts.items()},
        under_way=under_way,
        nodes={id_: tuple(node.get(name, 0.0) for name in ("CPU", "GPU", "memory")) for id_, node in nodes.items()},
        deaths=deaths,
        causes=causes,
    )


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
    wave: tuple[Shard, ...],
    pools: Pools,
    config: JobConfig,
    ledger: Any,  # noqa: ANN401 - as above
) -> ray.data.Dataset:
    """Build the lazy dataset of one wave, one block per shard.

    Ray's dashboard shows the names of the functions and classes.
    """
    max_denied = MAX_DENIED if config.max_reject_rate is None else config.max_reject_rate
    # one row is one shard; Ray refuses whole blocks as batches for stages with GPUs
    whole: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # each new process spends two seconds on imports: on one machine, start no more of them than cores
    few = {"concurrency": max(1, int(ray.cluster_resources().get("CPU", 1)))} if is_embedded() else {}  # type: ignore[no-untyped-call]
    shared = {"work": work, "max_denied": max_denied, "ledger": ledger}
    task: dict[str, Any] = {**whole, **few, "num_cpus": pools.task_cpus, "fn_kwargs": shared}
    loaded = {"device": pools.device, "num_threads": pools.num_threads, "max_batch_s": config.max_batch_s}
    dataset: ray.data.Dataset = ray.data.from_items(
        [{"shard": json.dumps(asdict(s))} for s in wave], override_num_blocks=len(wave)
    )
    dataset.set_name(f"annotate_{work.plan.plan}")
    dataset = dataset.map_batches(prepare_shard, **task)  # type: ignore[arg-type]
    actors: dict[str, Any] = {"transcribe": Transcribe, "recognise": Recognise}
    for pool in pools.pools:
        dataset = dataset.map_batches(
            actors[pool.stage],
            fn_constructor_kwargs={"work": work, "ledger": ledger, **loaded, "gpu_share": min(1.0, pool.gpus)},
            compute=ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most, initial_size=pool.start),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            memory=pool.memory_bytes or None,
            **whole,
        )
    return dataset.map_batches(commit_shard, **task)  # type: ignore[arg-type]


def _root_cause(error: BaseException) -> str:
    """Return the message of the original exception without Ray's wrapping; Ray sometimes keeps it only as text."""
    if ours := _OUR_ERROR.findall(str(error)):
        return str(ours[-1])
    if theirs := _ANY_ERROR.findall(str(error)):
        return str(theirs[-1])
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"


def prepare_shard(block: pa.Table, work: Work, max_denied: float, ledger: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Fetch, decode and segment one shard."""
    trip = transport.trip_of(block)
    watch = _RayWatch(ledger, f"prepare {trip.shard.name}")
    with trip.stage("prepare") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        table = prepare(work, trip.shard, **({} if max_denied < 1 else {"unreachable": None}))
    watch.end()
    return trip.pack(table)


def commit_shard(block: pa.Table, work: Work, max_denied: float, ledger: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Commit one shard. Returns: a block with its outcome only."""
    trip, table = transport.unpack(block)
    watch = _RayWatch(ledger, f"commit {trip.shard.name}")
    stage_s, figures = dict(trip.stage_s), dict(trip.figures)
    with trip.stage("commit") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        finished = finish(work, trip.shard, table, stage_s, figures=figures, max_denied=max_denied)
    watch.end()
    return pa.table({"finished": [json.dumps(asdict(replace(finished, figures=trip.figures)))]})


@dataclass(slots=True)
class _RayWatch:
    """A `Watch` that reports to the run's crash tracker, an actor."""

    ledger: Any
    step: str
    restarted: bool = False

    def begin(self) -> dict[int, int] | None:
        node = ray.get_runtime_context().get_node_id()
        found: dict[int, list[str]] | None = ray.get(self.ledger.begin.remote(self.step, node))
        self.restarted = found is not None
        return count_deaths(found, {node["NodeID"] for node in living_nodes()} if found else ())

    def enter(self, line: int) -> None:
        ray.get(self.ledger.enter.remote(self.step, line))

    def end(self) -> None:
        self.ledger.end.remote(self.step)


class _ModelActor:
    """Base class of actors that hold models. Subclasses load them before the first block, so failures appear early."""

    def __init__(self, *, work: Work, ledger: Any, **loaded: Any) -> None:  # noqa: ANN401 - as above
        self._work = work
        self._ledger = ledger
        self._models = roles.Loaded(work.plan.models, settings=work.plan.settings, **loaded)

    def _run(
        self, name: str, step: Callable[..., pa.Table], model_for: Callable[..., Any], block: pa.Table
    ) -> pa.Table:
        trip, table = transport.unpack(block)
        watch = _RayWatch(self._ledger, f"{name} {trip.shard.name}")
        with trip.stage(name) as counted:
            table = step(self._work, trip.shard, table, model_for, watch)
            counted |= {"restarts": float(watch.restarted), **self._models.take_figures()}
        return trip.pack(table)


class Transcribe(_ModelActor):
    """The actor of the transcription pool."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        self._models.load_transcribers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Transcribe one shard."""
        return self._run("transcribe", transcribe, self._models.transcriber_for, block)


class Recognise(_ModelActor):
    """The actor of the recognition pool."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        self._models.load_recognisers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Recognise one shard. Returns: a block without audio."""
        return self._run("recognise", recognise, self._models.recogniser_for, block)

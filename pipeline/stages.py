"""The engine: shards stream through Ray Data. With metrics.py, the only file that imports ray.

    shards -> prepare (CPU tasks) -> transcribe (actor pool) -> recognise (actor pool) -> finish (CPU tasks)

One shard is one row of one block all the way. On one machine pools are of fixed size; on a cluster they follow its nodes
(pools.py). Each step holds a share of the logical CPUs small enough that all of them fit on a machine with one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.core.generated import common_pb2, gcs_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import blocks
from pipeline.annotate import prepare, recognise, transcribe
from pipeline.attempts import Ledger, count_deaths
from pipeline.config import JobConfig
from pipeline.errors import JobError
from pipeline.finish import MAX_DENIED, Finished, finish
from pipeline.heartbeat import heard
from pipeline.metrics import Metrics
from pipeline.models import slots
from pipeline.native_output import native_output_hidden
from pipeline.plan import Shard
from pipeline.pools import Pools, Resources, size_pools
from pipeline.temporary import full_disk, low_disk, ray_folder, require_short_tmpdir
from pipeline.waiting import (
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
from pipeline.work import Work

_log = logging.getLogger(__name__)
_SHARDS_PER_WAVE = 4096
"""Shards handed to Ray Data at once: enough to keep every pool busy, few enough for its driver-side bookkeeping."""
_CPUS_OF_NODES_TO_COME = 2.0
"""Of a node, and beside a GPU, while there is none to look at: larger ones have room to spare, smaller ones are rare."""
_HEAD_ANSWERS_WITHIN_S = 20.0
_WORKERS_WAIT_MS = 600_000
_LEDGER_ANSWERS_WITHIN_S = 5.0
_OUR_ERROR = re.compile(r"^pipeline\.errors\.(?:JobError|ConfigError): (.*)$", re.MULTILINE)
_ANY_ERROR = re.compile(r"^((?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception): .*)$", re.MULTILINE)


@contextmanager
def cluster(out: TextIO = sys.stderr) -> Iterator[Resources]:
    """Join the cluster this driver was submitted to, or start one in this process's machine; leave it at the end.

    Args:
        out: where a cluster that is gone is spoken of.
    """
    embedded = _is_embedded()
    # the job says what it does itself; Ray's logs stay in its session folder
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data counts on what it asked for, and of the rest on whole CPUs; its default asks for shares of CPUs, an operator at
    # a time, and on small nodes no CPU is left for commits until all else is done. This one asks for nodes as they are
    os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
    started: dict[str, Any] = {"address": "local", "include_dashboard": False} if embedded else {}
    # Ray of its own listens on loopback alone, as on macOS, and wants a token that no file holds
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = not embedded
    if embedded:
        require_short_tmpdir()
        if little := low_disk(ray_folder()):
            print(
                f"warning: Ray may hang for want of disk space{little}; set RAY_TMPDIR to a folder on a larger disk",
                file=out,
            )
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray ends idle processes above one a core after a second; the next stage would import for two seconds again
        started["_system_config"] = {"idle_worker_killing_time_threshold_ms": _WORKERS_WAIT_MS}
    if not embedded:
        _require_head(os.environ["RAY_ADDRESS"])
    where = "start Ray on this machine" if embedded else f"join the Ray cluster at {os.environ['RAY_ADDRESS']}"
    with native_output_hidden():
        with _Starting(where):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **started)
        _set_up_ray_data()
        nodes = _living_nodes()
        try:
            with heard(_listeners(nodes), out):
                yield _resources(nodes, grows=not embedded)
        finally:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class _Starting:
    """Turn what Ray raises as it starts into a sentence: on a machine so busy that it takes over 30 s, a bare `Exception`."""

    where: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is Exception or isinstance(error, (OSError, RuntimeError, ray.exceptions.RayError)):
            why = full_disk(error, ray_folder()) or f"{error}{low_disk(ray_folder()) if _is_embedded() else ''}"
            raise JobError(f"cannot {self.where}: {why}") from error


def _is_embedded() -> bool:
    """Whether Ray is this job's own, on this machine alone."""
    return not os.environ.get("RAY_ADDRESS")


def _living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _resources(nodes: list[dict[str, Any]], *, grows: bool) -> Resources:
    held = [[node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")] for node in nodes]
    cpus, gpus, memory = map(sum, zip(*held, strict=True))
    return Resources(
        cpus,
        gpus,
        memory,
        len(nodes),
        node_cpus=min((cpus for cpus, _, _ in held if cpus), default=_CPUS_OF_NODES_TO_COME),
        node_memory_bytes=min((memory for cpus, _, memory in held if cpus), default=0.0),
        cpus_per_gpu=min((cpus / gpus for cpus, gpus, _ in held if gpus), default=_CPUS_OF_NODES_TO_COME),
        grows=grows,
    )


def _listeners(nodes: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """Without whom the driver cannot go on: the head, and Ray on the driver's own node."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    (here,) = (node for node in nodes if node["NodeID"] == context.get_node_id())
    return {
        "Ray's head": (host.strip("[]"), int(port)),
        "Ray on this node": (here["NodeManagerAddress"], here["NodeManagerPort"]),
    }


def _require_head(address: str) -> None:
    """Knock before `ray.init` does: at an address where nobody listens it waits for more than eight minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=_HEAD_ANSWERS_WITHIN_S).close()
        except OSError as error:
            raise JobError(f"no Ray head answers at RAY_ADDRESS={address}: {error}") from error


def _set_up_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.target_max_block_size = None
    # Ray Data's own bound of half an hour knows no long recordings and no slow autoscalers; waiting.py has ours
    context.execution_no_progress_timeout_s = -1
    # a pool is cut only when all of it is idle: its actors hold what another pool, or another job, may be waiting for
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_shards(
    work: Work, shards: Iterable[Shard], pools: Pools, config: JobConfig, on_finished: Callable[[Finished], None]
) -> None:
    """Annotate and commit shards; calls back once for each, in no order. To be called in the main thread.

    What hangs after a node was lost starts anew, with pools sized for the nodes that are left.

    Raises: JobError naming what stopped the job, a wait for workers that was too long among it. What was committed stays.
    """
    remaining = {shard.number: shard for shard in shards}
    # on the driver's node: what outlives the actors must not die with one of theirs
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
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
            pools = size_pools(on_device, _resources(_living_nodes(), grows=True), work.plan, len(remaining))
            _log.warning("warning: %s", stuck)
        except ray.exceptions.RayError as error:
            raise JobError(_root_cause(error)) from error


def _look(pools: Pools, ledger: Any, metrics: Metrics) -> Seen | None:  # noqa: ANN401 - Ray's handles are untyped
    """Ask Ray how the actors are, and which nodes there are; None when it does not answer."""
    counts = {pool.stage: {"asked": 0, "alive": 0, "waiting": 0} for pool in pools.pools}
    try:
        # private, for want of another way to a driver whose cluster has no dashboard; ray is pinned to one version
        actors = ray._private.state.actors(job_id=ray.get_runtime_context().job_id).values()
        deaths, causes = deaths_by_stage(actors, _dead_workers(), counts)
        nodes = {node["NodeID"]: node["Resources"] for node in _living_nodes()}
    except (ray.exceptions.RayError, RuntimeError, OSError):
        return None
    try:
        under_way = int(ray.get(ledger.under_way.remote(set(nodes)), timeout=_LEDGER_ANSWERS_WITHIN_S))
    except ray.exceptions.RayError:  # it cannot start either
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
    """The job's worker processes that ended before their time, in the order in which they did."""
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
    """The lazy dataset of one wave: one block, one shard. Ray's dashboard shows the names of the functions and classes."""
    max_denied = MAX_DENIED if config.max_reject_rate is None else config.max_reject_rate
    # one row is one shard; to ask for whole blocks instead is refused where there are GPUs
    whole: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # a process that is new to these tasks imports for two seconds first: on one machine, no more of them than cores
    few = {"concurrency": max(1, int(ray.cluster_resources().get("CPU", 1)))} if _is_embedded() else {}  # type: ignore[no-untyped-call]
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
    """The sentence of the exception that started it, without Ray's wrapping: Ray keeps it, at times, only as text."""
    if ours := _OUR_ERROR.findall(str(error)):
        return str(ours[-1])
    if theirs := _ANY_ERROR.findall(str(error)):
        return str(theirs[-1])
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"


def prepare_shard(block: pa.Table, work: Work, max_denied: float, ledger: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Fetch, decode and cut one shard."""
    trip = blocks.trip_of(block)
    watch = _RayWatch(ledger, f"prepare {trip.shard.name}")
    with trip.stage("prepare") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        table = prepare(work, trip.shard, **({} if max_denied < 1 else {"unreachable": None}))
    watch.end()
    return trip.pack(table)


def commit_shard(block: pa.Table, work: Work, max_denied: float, ledger: Any) -> pa.Table:  # noqa: ANN401 - as above
    """Commit one shard; its block ends here."""
    trip, table = blocks.unpack(block)
    watch = _RayWatch(ledger, f"commit {trip.shard.name}")
    stage_s, figures = dict(trip.stage_s), dict(trip.figures)
    with trip.stage("commit") as counted:
        counted["restarts"] = float(watch.begin() is not None)
        finished = finish(work, trip.shard, table, stage_s, figures=figures, max_denied=max_denied)
    watch.end()
    return pa.table({"finished": [json.dumps(asdict(replace(finished, figures=trip.figures)))]})


@dataclass(slots=True)
class _RayWatch:
    """A watch on the run's one ledger, an actor."""

    ledger: Any
    step: str
    restarted: bool = False

    def begin(self) -> dict[int, int] | None:
        node = ray.get_runtime_context().get_node_id()
        found: dict[int, list[str]] | None = ray.get(self.ledger.begin.remote(self.step, node))
        self.restarted = found is not None
        return count_deaths(found, {node["NodeID"] for node in _living_nodes()} if found else ())

    def enter(self, line: int) -> None:
        ray.get(self.ledger.enter.remote(self.step, line))

    def end(self) -> None:
        self.ledger.end.remote(self.step)


class _ModelActor:
    """Holds the models of one process; subclasses load theirs before the first block, so a failure is seen at once."""

    def __init__(self, *, work: Work, ledger: Any, **loaded: Any) -> None:  # noqa: ANN401 - as above
        self._work = work
        self._ledger = ledger
        self._models = slots.Loaded(work.plan.models, settings=work.plan.settings, **loaded)

    def _run(
        self, name: str, step: Callable[..., pa.Table], model_for: Callable[..., Any], block: pa.Table
    ) -> pa.Table:
        trip, table = blocks.unpack(block)
        watch = _RayWatch(self._ledger, f"{name} {trip.shard.name}")
        with trip.stage(name) as counted:
            table = step(self._work, trip.shard, table, model_for, watch)
            counted |= {"restarts": float(watch.restarted), **self._models.take_figures()}
        return trip.pack(table)


class Transcribe(_ModelActor):
    """The transcription pool's actor."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        self._models.load_transcribers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Transcribe one shard."""
        return self._run("transcribe", transcribe, self._models.transcriber_for, block)


class Recognise(_ModelActor):
    """The recognition pool's actor."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**arguments)
        self._models.load_recognisers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Recognise one shard; its audio ends here."""
        return self._run("recognise", recognise, self._models.recogniser_for, block)

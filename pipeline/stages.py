"""The engine: shards stream through Ray Data. The only file that imports ray.

    shards -> prepare (CPU tasks) -> transcribe (actor pool) -> recognise (actor pool) -> finish (CPU tasks)

One shard is one row of one block all the way. Pools are of fixed size: autoscaling GPU pools have hung
(ray #59144). Each step holds a share of the logical CPUs small enough that all of them fit on a machine with one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotate import prepare, recognise, transcribe
from pipeline.attempts import Ledger
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, JobError
from pipeline.finish import MAX_DENIED, Finished, finish
from pipeline.heartbeat import heard
from pipeline.models import slots
from pipeline.plan import Plan, Shard
from pipeline.work import Work

_SHARDS_PER_WAVE = 4096
"""Shards handed to Ray Data at once: enough to keep every pool busy, few enough for its driver-side bookkeeping."""
_POOL_SHARE = 0.6
"""Share of the logical CPUs that the actor pools may hold; the rest is for the CPU tasks that feed and drain them."""
_TASK_SHARE = 0.2
_MODEL_MEMORY_SHARE = 0.6
"""Share of the memory that copies of the models may fill."""
_MODEL_OVERHEAD = 1.3
_HEAD_ANSWERS_WITHIN_S = 20.0
_WORKERS_WAIT_MS = 600_000
_OUR_ERROR = re.compile(r"^pipeline\.errors\.(?:JobError|ConfigError): (.*)$", re.MULTILINE)
_ANY_ERROR = re.compile(r"^((?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception): .*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has, over all nodes."""

    cpus: float
    gpus: float
    memory_bytes: float
    nodes: int


@dataclass(frozen=True, slots=True)
class Pools:
    """How many actors of each kind, and what each holds."""

    device: str
    transcribers: int
    recognisers: int
    actor_cpus: float
    task_cpus: float
    transcriber_gpus: float
    recogniser_gpus: float
    num_threads: int


@contextmanager
def cluster(out: TextIO = sys.stderr) -> Iterator[Resources]:
    """Join the cluster this driver was submitted to, or start one in this process's machine; leave it at the end.

    Args:
        out: where a cluster that is gone is spoken of.
    """
    embedded = not os.environ.get("RAY_ADDRESS")
    # the job says what it does itself; Ray's logs stay in its session folder
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started: dict[str, Any] = {"address": "local", "include_dashboard": False} if embedded else {}
    if embedded:
        # Ray ends idle processes above one a core after a second; the next stage would import for two seconds again
        started["_system_config"] = {"idle_worker_killing_time_threshold_ms": _WORKERS_WAIT_MS}
    if not embedded:
        _require_head(os.environ["RAY_ADDRESS"])
    with _native_chatter_kept_back():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **started)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            where = "start Ray on this machine" if embedded else f"join the Ray cluster at {os.environ['RAY_ADDRESS']}"
            raise JobError(f"cannot {where}: {error}") from error
        _quiet()
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus, memory = (sum(node["Resources"].get(n, 0.0) for node in nodes) for n in ("CPU", "GPU", "memory"))
        try:
            with heard(_listeners(nodes), out):
                yield Resources(cpus, gpus, memory, len(nodes))
        finally:
            ray.shutdown()


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


@contextmanager
def _native_chatter_kept_back() -> Iterator[None]:
    """Send what Ray and C++ code write to standard output and error into a file that goes with the run.

    Ray writes there, past Python's logging, what nobody can act on, and pages of it when an actor fails; what matters of
    that is in the exception. The driver's own lines go to a stream opened before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as chatter:
        for descriptor in ours:
            os.dup2(chatter.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, kept in ours.items():
                os.dup2(kept, descriptor)
                os.close(kept)


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.target_max_block_size = None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def choose_device(config: JobConfig, resources: Resources) -> str:
    """cuda when asked for or, under auto, when the cluster has a GPU. Raises: ConfigError."""
    if config.device == "cuda" and not resources.gpus:
        raise ConfigError("--device cuda: Ray sees no GPU here; start the workers with GPUs or use --device cpu")
    if config.device == "auto":
        return "cuda" if resources.gpus else "cpu"
    return config.device


def size_pools(config: JobConfig, resources: Resources, plan: Plan, num_shards: int) -> Pools:
    """Pool sizes from the cluster and the models; every number can be set by a flag."""
    asr = slots.needs_asr(plan)
    device = choose_device(config, resources)
    cpus = max(1, int(resources.cpus))
    asr_gpus = emotion_gpus = 0.0
    if device == "cuda":
        asr_gpus = (config.asr_gpus or 0.5) if asr else 0.0
        emotion_gpus = config.emotion_gpus or (0.5 if asr else 1.0)
        fitting = int(resources.gpus / (asr_gpus + emotion_gpus))
    else:
        fitting = cpus // 2 if asr else cpus
        copies = _MODEL_OVERHEAD * sum(model["bytes"] for model in plan.models.values())
        fitting = min(fitting, int(_MODEL_MEMORY_SHARE * resources.memory_bytes / max(copies, 1.0)))
    default = max(1, min(fitting, num_shards))
    transcribers = (config.asr_actors or default) if asr else 0
    recognisers = config.emotion_actors or default
    actors = transcribers + recognisers
    return Pools(
        device=device,
        transcribers=transcribers,
        recognisers=recognisers,
        actor_cpus=min(1.0, _POOL_SHARE * resources.cpus / actors),
        task_cpus=min(1.0, _TASK_SHARE * resources.cpus),
        transcriber_gpus=asr_gpus,
        recogniser_gpus=emotion_gpus,
        # from the machine alone: another number of threads could change the last bits of a resumed run's scores
        num_threads=max(1, cpus // (fitting * (2 if asr else 1) or 1)) if device == "cpu" else 0,
    )


def run_shards(
    work: Work, shards: Iterable[Shard], pools: Pools, config: JobConfig, on_finished: Callable[[Finished], None]
) -> None:
    """Annotate and commit shards; calls back once for each, in no order.

    Raises: JobError naming what stopped the job. What was committed stays.
    """
    remaining = iter(shards)
    # on the driver's node: what outlives the actors must not die with one of theirs
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
    while wave := tuple(islice(remaining, _SHARDS_PER_WAVE)):
        try:
            for table in _pipeline(work, wave, pools, config, ledger).iter_batches(
                batch_size=None, batch_format="pyarrow"
            ):
                for line in pa.table(table)["finished"].to_pylist():
                    on_finished(Finished(**json.loads(line)))
        except ray.exceptions.RayError as error:
            raise JobError(_root_cause(error)) from error


def _pipeline(
    work: Work,
    wave: tuple[Shard, ...],
    pools: Pools,
    config: JobConfig,
    ledger: Any,  # noqa: ANN401 - Ray's handles are untyped
) -> ray.data.Dataset:
    """The lazy dataset of one wave: one block, one shard."""
    max_denied = MAX_DENIED if config.max_reject_rate is None else config.max_reject_rate
    # one row is one shard; to ask for whole blocks instead is refused where there are GPUs
    whole: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # a process that is new to these tasks imports for two seconds first: on a small machine, no more of them than cores
    few = {"concurrency": max(1, round(pools.task_cpus / _TASK_SHARE))} if pools.task_cpus < 1 else {}
    task: dict[str, Any] = {
        **whole,
        **few,
        "num_cpus": pools.task_cpus,
        "fn_kwargs": {"work": work, "max_denied": max_denied},
    }
    arguments = (work, pools.device, pools.num_threads, config.max_batch_s, ledger)
    dataset: ray.data.Dataset = ray.data.from_items(
        [{"shard": json.dumps(asdict(s))} for s in wave], override_num_blocks=len(wave)
    )
    dataset = dataset.map_batches(_prepare_block, **task)  # type: ignore[arg-type]
    if pools.transcribers:
        dataset = dataset.map_batches(
            Transcribe,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=pools.transcribers),
            num_cpus=pools.actor_cpus,
            num_gpus=pools.transcriber_gpus or None,
            **whole,
        )
    dataset = dataset.map_batches(
        Recognise,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=pools.recognisers),
        num_cpus=pools.actor_cpus,
        num_gpus=pools.recogniser_gpus or None,
        **whole,
    )
    return dataset.map_batches(_finish_block, **task)  # type: ignore[arg-type]


def _root_cause(error: BaseException) -> str:
    """The sentence of the exception that started it, without Ray's wrapping: Ray keeps it, at times, only as text."""
    if ours := _OUR_ERROR.findall(str(error)):
        return str(ours[-1])
    if theirs := _ANY_ERROR.findall(str(error)):
        return str(theirs[-1])
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"


# -- blocks: one row, which nothing can split or merge: the shard, the seconds it took, and its work table


def _pack(table: pa.Table, shard: Shard, stage_s: dict[str, float]) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    ends = pa.array([0, content.size], pa.int64()).buffers()[1]
    packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, content])  # without a copy
    return pa.table({"shard": [json.dumps(asdict(shard))], "stage_s": [json.dumps(stage_s)], "table": packed})


def _unpack(block: pa.Table) -> tuple[pa.Table, Shard, dict[str, float]]:
    shard, stage_s = _shard_of(block), json.loads(block["stage_s"][0].as_py())
    return pa.ipc.open_stream(block["table"][0].as_buffer()).read_all(), shard, stage_s


def _shard_of(block: pa.Table) -> Shard:
    if block.num_rows != 1:
        raise JobError(f"a block holds {block.num_rows} shards instead of one")
    return Shard(**json.loads(block["shard"][0].as_py()))


def _prepare_block(block: pa.Table, work: Work, max_denied: float) -> pa.Table:
    started = time.perf_counter()
    shard = _shard_of(block)
    table = prepare(work, shard) if max_denied < 1 else prepare(work, shard, unreachable=None)
    return _pack(table, shard, {"prepare": time.perf_counter() - started})


def _finish_block(block: pa.Table, work: Work, max_denied: float) -> pa.Table:
    table, shard, stage_s = _unpack(block)
    finished = finish(work, shard, table, stage_s, max_denied=max_denied)
    return pa.table({"finished": [json.dumps(asdict(finished))]})


class _ModelActor:
    """Holds the models of one process; subclasses load theirs before the first block, so a failure is seen at once."""

    def __init__(self, work: Work, device: str, num_threads: int, max_batch_s: float | None, ledger: Any) -> None:  # noqa: ANN401 - as above
        self._work = work
        self._ledger = ledger
        self._models = slots.Loaded(
            work.plan.models,
            settings=work.plan.settings,
            device=device,
            num_threads=num_threads,
            max_batch_s=max_batch_s,
        )

    def watch(self, step: str, shard: Shard) -> _RayWatch:
        """Where this process says what it works on."""
        return _RayWatch(self._ledger, f"{step} {shard.name}")


@dataclass(frozen=True, slots=True)
class _RayWatch:
    """A watch on the run's one ledger, an actor."""

    ledger: Any
    step: str

    def begin(self) -> dict[int, int] | None:
        found: dict[int, int] | None = ray.get(self.ledger.begin.remote(self.step))
        return found

    def enter(self, line: int) -> None:
        ray.get(self.ledger.enter.remote(self.step, line))

    def end(self) -> None:
        self.ledger.end.remote(self.step)


class Transcribe(_ModelActor):
    """The transcription pool's actor."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(*arguments)
        self._models.load_transcribers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Transcribe one shard."""
        started = time.perf_counter()
        table, shard, stage_s = _unpack(block)
        table = transcribe(self._work, shard, table, self._models.transcriber_for, self.watch("transcribe", shard))
        return _pack(table, shard, {**stage_s, "transcribe": time.perf_counter() - started})


class Recognise(_ModelActor):
    """The recognition pool's actor."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(*arguments)
        self._models.load_recognisers()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Recognise one shard; its audio ends here."""
        started = time.perf_counter()
        table, shard, stage_s = _unpack(block)
        table = recognise(self._work, shard, table, self._models.recogniser_for, self.watch("recognise", shard))
        return _pack(table, shard, {**stage_s, "recognise": time.perf_counter() - started})

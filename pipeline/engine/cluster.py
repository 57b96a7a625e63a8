"""The Ray cluster of a run: join the one the driver was submitted to, or start one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

import ray
import ray.data
import ray.exceptions

from pipeline.engine.forking import forked_workers
from pipeline.engine.heartbeat import watched
from pipeline.engine.local_ray import small_ray
from pipeline.engine.native_output import native_output_hidden
from pipeline.engine.pools import Resources
from pipeline.engine.source import ForgetBlockStats
from pipeline.errors import JobError
from pipeline.storage.temporary import full_disk, low_disk, ray_folder, require_room_for_ray, require_short_tmpdir

_CPUS_OF_NODES_TO_COME = 2.0
"""Assumed CPUs of a node, and per GPU, while the cluster has none: larger nodes have spare CPUs, smaller ones are rare."""
_HEAD_ANSWERS_WITHIN_S = 20.0
_WORKERS_WAIT_MS = 600_000
_JOIN_TRIES = 3


@contextmanager
def cluster(out: TextIO = sys.stderr) -> Iterator[Resources]:
    """Join the cluster at RAY_ADDRESS, or start one on this machine; disconnect at the end.

    Args:
        out: stream for the cluster-lost message.
    """
    embedded = is_embedded()
    # the job reports its own progress; Ray's logs stay in its session folder
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data counts on the resources it requested, and beyond them on whole CPUs. Its default autoscaler requests shares of
    # CPUs for one operator at a time, so on small nodes no CPU is left for commits until the rest is done. V2 requests whole
    # nodes
    os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
    started: dict[str, Any] = {"address": "local", "include_dashboard": False} if embedded else {}
    # a Ray that this job starts listens only on loopback, as on macOS, and requires a token that is in no file
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = not embedded
    if embedded:
        require_short_tmpdir()
        require_room_for_ray()
        if little := low_disk(ray_folder()):
            print(
                f"warning: Ray may hang for lack of disk space{little}; set RAY_TMPDIR to a folder on a larger disk",
                file=out,
            )
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray ends idle processes beyond one per core after a second; the next stage would need two seconds to import again
        started["_system_config"] = {"idle_worker_killing_time_threshold_ms": _WORKERS_WAIT_MS}
    if not embedded:
        _require_head(os.environ["RAY_ADDRESS"])
    where = "start Ray on this machine" if embedded else f"join the Ray cluster at {os.environ['RAY_ADDRESS']}"
    with forked_workers(), small_ray() if embedded else nullcontext(), native_output_hidden():
        with _Starting(where):
            _start_or_join(started, tries=1 if embedded else _JOIN_TRIES)
        _set_up_ray_data()
        nodes = living_nodes()
        try:
            with watched(_listeners(nodes), out):
                yield resources_of(nodes, grows=not embedded)
        finally:
            ray.shutdown()


def _start_or_join(arguments: dict[str, Any], *, tries: int) -> None:
    """Call `ray.init`, again when Ray cannot connect: it waits 30 s for its own node, which may be starting on a busy machine.

    Raises: ConnectionError when the last try fails, and Ray's other errors.
    """
    for left in reversed(range(tries)):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **arguments)
            return
        except ConnectionError:
            ray.shutdown()
            if not left:
                raise


@dataclass(frozen=True, slots=True)
class _Starting:
    """Context manager that turns Ray's start-up errors into JobError.

    Ray raises a bare `Exception` when the machine is so busy that starting takes over 30 s.
    """

    where: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is Exception or isinstance(error, (OSError, RuntimeError, ray.exceptions.RayError)):
            why = full_disk(error, ray_folder()) or f"{error}{low_disk(ray_folder()) if is_embedded() else ''}"
            raise JobError(f"cannot {self.where}: {why}") from error


def is_embedded() -> bool:
    """Return whether this job starts its own Ray on this machine."""
    return not os.environ.get("RAY_ADDRESS")


def living_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def resources_of(nodes: list[dict[str, Any]], *, grows: bool) -> Resources:
    """Return what the nodes have. Args: grows: whether nodes may join and leave."""
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


def visible_resources() -> Resources:
    """Return the cluster's resources, or this machine's without its GPUs, which only Ray detects."""
    if not is_embedded():
        with cluster() as resources:
            return resources
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    return Resources(cpus=cpus, gpus=0, memory_bytes=memory, nodes=1, node_cpus=cpus)


def _listeners(nodes: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """Return the addresses that the driver depends on, by name: the head, and Ray on the driver's own node."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    (here,) = (node for node in nodes if node["NodeID"] == context.get_node_id())
    return {
        "Ray's head": (host.strip("[]"), int(port)),
        "Ray on this node": (here["NodeManagerAddress"], here["NodeManagerPort"]),
    }


def _require_head(address: str) -> None:
    """Check that the head is reachable before `ray.init`, which waits over eight minutes for an unused address.

    Raises: JobError.
    """
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
    context.target_max_block_size = 1  # a row of its own for each block: one row is one shard, which is never divided
    context.custom_execution_callback_classes = [ForgetBlockStats]
    # Ray Data's own limit of half an hour does not allow for long recordings or slow autoscalers; watchdog.py has ours
    context.execution_no_progress_timeout_s = -1
    # a pool shrinks only when all of it is idle, to free resources for which another pool or job may be waiting
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)

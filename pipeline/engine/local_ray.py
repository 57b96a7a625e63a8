"""A Ray for one job on one machine, without the processes that only clusters and dashboards need.

Ray starts a dashboard, an autoscaler, a log monitor and two agents, and Ray Data two actors, for statistics on the dashboard
and for sharing a cluster between datasets. They take 6.5 s of a core at the start of a job and a second at its end; a job that
starts Ray itself on one machine uses none of them. docs/performance.md, startup, has what remains.

The agents are for the dashboard, for metrics, which a cluster's Prometheus collects, and for runtime environments, which
workers of one machine do not need. Ray's node waits until both have written their ports, and ends when one of them does. So
their ports are written here, and `cat`, which ends with the node, takes their place.

Ray has no options for them, so methods of the driver's Ray are replaced while the job runs. Ray is pinned to one version;
`tests/engine/test_local_ray.py` fails if a name is gone.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node
from ray._raylet import (  # type: ignore[attr-defined]
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    RUNTIME_ENV_AGENT_PORT_NAME,
    persist_port,
)
from ray.data._internal.cluster_autoscaler.base_cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data._internal.stats import _StatsManager

from pipeline.engine import forking
from pipeline.processes import FORK_SERVER

_PORTS = (
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    RUNTIME_ENV_AGENT_PORT_NAME,
)
_AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_NEED_AGENTS = {"RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
"""Variables that give workers a runtime environment, which an agent sets up."""
_NOT_IN_USE = -1
"""Port that Ray's own agent writes for a service that it leaves out."""
_start_ray_process = services.start_ray_process
_start_own_raylet = Node.start_raylet


class _FixedCluster(ClusterAutoscaler):
    """The autoscaler of a cluster that neither grows nor is shared."""

    def try_trigger_scaling(self) -> None:
        """Do nothing."""

    def on_executor_shutdown(self) -> None:
        """Do nothing."""

    def get_total_resources(self) -> ExecutionResources:
        """Return the machine's resources."""
        resources: ExecutionResources = ExecutionResources.from_resource_dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        return resources


def _nothing(*_: object, **__: object) -> None:
    """Stand in for a method that starts a process or reports to one."""


def _start_raylet(node: Any, *arguments: Any) -> None:  # noqa: ANN401 - Ray's nodes are untyped
    if FORK_SERVER in os.environ:
        node._ray_params.setup_worker_path = forking.__file__
    _start_own_raylet(node, *arguments)


def _no_dashboard(node: Any, **_: object) -> None:  # noqa: ANN401 - Ray's nodes are untyped
    node._webui_url = None


def _start_process(command: list[str], process_type: str, **options: Any) -> Any:  # noqa: ANN401 - as above
    """Start one of Ray's processes; the node's without agents."""
    stand_in = None if _NEED_AGENTS & os.environ.keys() else shutil.which("cat")
    if process_type == ray_constants.PROCESS_TYPE_RAYLET and stand_in:
        given = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        for name in _PORTS:
            persist_port(given["session_dir"], given["node_id"], name, _NOT_IN_USE)
        command = [next((a + stand_in for a in _AGENTS if word.startswith(a)), word) for word in command]
    return _start_ray_process(command, process_type, **options)


@contextmanager
def small_ray() -> Iterator[None]:
    """Start Ray in the block without these processes, and run datasets without these actors."""
    replacements: list[tuple[Any, str, object]] = [
        (services, "start_ray_process", _start_process),
        (ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
        (Node, "start_monitor", _nothing),
        (Node, "start_log_monitor", _nothing),
        (Node, "start_raylet", _start_raylet),
        (Node, "start_api_server", _no_dashboard),
        (_StatsManager, "gen_dataset_id_from_stats_actor", staticmethod(lambda: uuid.uuid4().hex)),
        (_StatsManager, "register_dataset_to_stats_actor", staticmethod(_nothing)),
        (_StatsManager, "update_execution_metrics", staticmethod(_nothing)),
        (_StatsManager, "update_iteration_metrics", staticmethod(_nothing)),
        (streaming_executor, "create_cluster_autoscaler", lambda *_, **__: _FixedCluster()),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replacements]
    try:
        for owner, name, replacement in replacements:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)

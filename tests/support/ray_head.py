"""A Ray cluster of one node on loopback, for jobs that join one."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.corpus import require_servers
from tests.support.processes import started, wait_until

BIN = Path(sys.executable).parent
KEEP_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}
"""Without it a node of one or two CPUs ends the worker of its tasks a second after a shard, and starts one for the next."""


@dataclass(frozen=True)
class Head:
    dashboard: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(
    folder: Path, cpus: int, gpus: int = 0, *more: str, environment: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """Run a one-node cluster on loopback with any number of logical CPUs and GPUs; it is killed at the end, because a graceful
    stop takes half a minute.

    Args:
        more: options of `ray start`.
        environment: variables of every process on the node.
    """
    require_servers()
    port, dashboard, agent = free_port(), free_port(), free_port()
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats", *more,
    ]  # fmt: skip
    log = folder / "head.log"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    common = {**token, **KEEP_WORKERS}
    with started(command, log, {"PATH": f"{BIN}:{os.environ['PATH']}", **common, **(environment or {})}) as process:
        wait_until(lambda: listens(port) and listens(dashboard) and listens(agent), process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", {"RAY_ADDRESS": f"127.0.0.1:{port}", **common})


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

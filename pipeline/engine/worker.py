"""A worker process of a Ray on one machine, as a fork of the job's fork server (forking.py).

The server imports this module at the first request, and with its environment: Ray reads the id of its node's process once,
when it is imported.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.utils import update_envs
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated.common_pb2 import Language  # type: ignore[attr-defined]

import pipeline.engine.stages  # noqa: F401 - most of the time that forks save

_RAYLET = "RAY_RAYLET_PID"
_raylet = os.environ.get(_RAYLET)


def main() -> None:
    """Set up the runtime environment and become a worker, as `ray/_private/workers/setup_worker.py` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    ours, arguments = parser.parse_known_args()
    context = RuntimeEnvContext.deserialize(ours.serialized_runtime_env_context)  # type: ignore[no-untyped-call]
    special = context.command_prefix or context.override_worker_entrypoint or context.py_executable != sys.executable
    if special or os.environ.get(_RAYLET) != _raylet:
        context.exec_worker(arguments, Language.Value(ours.language))
    update_envs(context.env_vars)
    Config.initialize("")  # Ray has read its other variables too
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")

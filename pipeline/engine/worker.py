"""A worker process of a Ray on one machine, as a fork of the job's fork server (forking.py)."""

from __future__ import annotations

import argparse
import runpy
import sys

from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.utils import update_envs
from ray.core.generated.common_pb2 import Language  # type: ignore[attr-defined]


def main() -> None:
    """Set up the runtime environment and become a worker, as `ray/_private/workers/setup_worker.py` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    ours, arguments = parser.parse_known_args()
    context = RuntimeEnvContext.deserialize(ours.serialized_runtime_env_context)  # type: ignore[no-untyped-call]
    if context.command_prefix or context.override_worker_entrypoint or context.py_executable != sys.executable:
        context.exec_worker(arguments, Language.Value(ours.language))
    update_envs(context.env_vars)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")

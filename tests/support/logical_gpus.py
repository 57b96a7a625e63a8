"""GPUs that only Ray counts: real models on the CPU, in workers to which Ray assigned a GPU, and a pause for each shard."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

_PAUSE = "LOGICAL_GPU_PAUSE_S"


def arm() -> None:
    """Move the models of this process to the CPU."""
    from pipeline.models import roles

    prepare, recogniser_for = roles.Loaded.__init__, roles.Loaded.recogniser_for

    def on_cpu(self: roles.Loaded, models: Mapping[str, Any], **options: Any) -> None:
        prepare(self, models, **{**options, "device": "cpu", "num_threads": 1})

    def unhurried(self: roles.Loaded, *role: str) -> object:
        time.sleep(float(os.environ[_PAUSE]))
        return recogniser_for(self, *role)

    roles.Loaded.__init__, roles.Loaded.recogniser_for = on_cpu, unhurried


def runtime_env(pause_s: float) -> Mapping[str, Any]:
    """Return the runtime environment that arms a job's workers; each pauses `pause_s` before it recognises a shard."""
    return {"worker_process_setup_hook": f"{__name__}.arm", "env_vars": {_PAUSE: str(pause_s)}}

"""A hook that every Ray worker of one test runs first: afterwards a text that only that test's manifest has kills the process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping

LETHAL = "these words kill"


def arm() -> None:
    """Make `EmotionRecogniser.recognise` kill its process at the text, as a bug in native code would."""
    from pipeline.models.emotion import EmotionRecogniser

    recognise = EmotionRecogniser.recognise

    def deadly(self: EmotionRecogniser, waveforms: list[object] | None, texts: list[str]) -> object:
        if LETHAL in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return recognise(self, waveforms, texts)

    EmotionRecogniser.recognise = deadly


def arm_start() -> None:
    """Kill every recognition actor as it loads its models, as the kernel does when they do not fit into memory."""
    from pipeline.models import roles

    roles.Loaded.load_recognisers = lambda _: os.kill(os.getpid(), signal.SIGKILL)


def environment(root: str, hook: str = "arm") -> Mapping[str, str]:
    """Return the variables with which a job's workers run a hook."""
    hooked = {"runtime_env": {"worker_process_setup_hook": f"{__name__}.{hook}", "env_vars": {"PYTHONPATH": root}}}
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(hooked), "PYTHONPATH": root}

"""`jobs.annotate` on a Ray whose workers die of one text: a process that is gone, not an exception."""

from __future__ import annotations

import os
import sys

LETHAL = "these words kill"


def arm() -> None:
    """Run in every Ray worker before anything else: recognising `LETHAL` ends the process."""
    from pipeline.models.emotion import EmotionRecogniser

    harmless = EmotionRecogniser.recognise

    def recognise(self: EmotionRecogniser, waveforms: object, texts: list[str]) -> object:
        if LETHAL in texts:
            os._exit(1)
        return harmless(self, waveforms, texts)

    EmotionRecogniser.recognise = recognise


if __name__ == "__main__":
    import ray

    from jobs.annotate import main

    start = ray.init
    ray.init = lambda **options: start(**options, runtime_env={"worker_process_setup_hook": "tests.lethal_job.arm"})
    sys.exit(main())

"""Workers of a Ray on one machine as forks of one process that has imported what they need.

Ray starts this program in place of its own, with the same arguments. Ray's program imports Ray twice, and each worker then
imports torch and transformers: two to three seconds of a core. The fork server does not import Ray: its random numbers would
be the same in all forks, and two workers that start at the same moment would then create the same object.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

_GPUS = ("/dev/nvidiactl", "/dev/kfd")
"""Devices of machines with GPUs, whose libraries do not promise to work in a fork."""
_MODULES = (
    "pipeline.models.emotion",
    "pipeline.models.transcriber",
    "pipeline.models.checkpoints.pinning",
    "pipeline.models.checkpoints.modes",
    "pipeline.models.checkpoints.weights",
    "pipeline.shard.commit",
    "pipeline.shard.prepare",
    "pipeline.shard.recognise",
    "pipeline.shard.transcribe",
    "pandas",
    "pyarrow.dataset",
)
"""Modules that the fork server imports: those of workers and of the check of models, but Ray."""


@contextmanager
def forked_workers() -> Iterator[None]:
    """Start the fork server now, so that its imports run beside the driver's; a Ray started in the block forks its workers.

    Does nothing where there is a GPU, on systems other than Linux, for a job that joins a cluster, and inside another block.
    """
    from pipeline.processes import FORK_SERVER, fork_server

    useless = (
        sys.platform != "linux" or any(map(os.path.exists, _GPUS)) or {FORK_SERVER, "RAY_ADDRESS"} & os.environ.keys()
    )
    with nullcontext() if useless else fork_server(_MODULES):
        yield


def main() -> None:
    """Start a worker: a fork of the server, or without a server this process."""
    from pipeline.processes import request_fork

    try:
        if not request_fork("pipeline.engine.worker", sys.argv[1:], (0, 1, 2)).recv(1):
            raise ConnectionError("the fork server ended")
    except OSError:
        from pipeline.engine.worker import main

        main()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main()

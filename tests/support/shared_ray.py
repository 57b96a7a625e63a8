"""One Ray for all jobs of a test process: a job whose start and end are not the subject neither starts nor stops it.

The driver runs in the test process, so that it imports Ray, torch and the packages once. Everything else is real: the command
line, the pinning process, the tasks, the actors and the output.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

from pipeline.engine.pools import Resources
from tests.support.corpus import ROOT, command

Annotate = Callable[..., subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def started_ray() -> Iterator[None]:
    """Start a Ray of this machine's CPUs, as a job does, and stop it at the end. Its workers keep the present environment."""
    import ray

    from pipeline.engine.cluster import _WORKERS_WAIT_MS, _set_up_ray_data

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_CLUSTER_AUTOSCALER"] = "V2"
    waits = {"idle_worker_killing_time_threshold_ms": _WORKERS_WAIT_MS}
    with _lenient(), contextlib.chdir(ROOT):
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config=waits,
        )
        _set_up_ray_data()
    try:
        yield
    finally:
        with _lenient():
            ray.shutdown()


@contextlib.contextmanager
def _joined(*_: object) -> Iterator[Resources]:

    from pipeline.engine.cluster import living_nodes, resources_of

    yield resources_of(living_nodes(), grows=False)


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """Ignore warnings, which are errors in tests, while Ray's own code runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def annotate(
    manifest: Path | str, output: Path | str, *options: str, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end on the Ray of this process; fails with its messages when the status differs from `expect`.

    Returns: as `corpus.annotate`, without the lines of progress.
    """

    import jobs.annotate
    import pipeline.engine.run as driver_module

    words = command(manifest, output, *options)
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        patch.object(driver_module, "cluster", _joined),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(ROOT),
        _lenient(),
    ):
        try:
            status = jobs.annotate.main(words[3:])
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert status == expect, f"status {status}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

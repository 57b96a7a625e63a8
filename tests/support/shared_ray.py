"""One Ray for all jobs of a test process: a job whose start and end are not the subject neither starts nor stops it.

The driver runs in the test process, so that it imports Ray, torch and the packages once. Everything else is real: the command
line, the pinning process, the tasks, the actors and the output.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pipeline.engine.pools import Resources
from pipeline.processes import FORK_SERVER
from tests.support.corpus import ROOT, command
from tests.support.fault_proxy import FaultProxy, fault_proxy


@dataclass(frozen=True)
class SharedRay:
    """A running Ray. Call it to annotate, like `corpus.annotate`.

    Attributes:
        proxy: between the workers and the S3 server; it has their requests.
        server: the variable that names the fork server; other jobs start their own.
    """

    proxy: FaultProxy
    server: Mapping[str, str]

    def __call__(
        self, manifest: Path | str, output: Path | str, *options: str, expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run the job to its end; fail with its messages when the exit status differs from `expect`."""
        return self.run("annotate", *command(manifest, output, *options)[3:], expect=expect)

    def run(self, job: str, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a job that annotates, in this process and its lasting Ray. Returns: its output, without lines of progress."""
        import pipeline.engine.run as driver_module

        main = importlib.import_module(f"jobs.{job}").main
        out, err = io.StringIO(), io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        with (
            patch.object(driver_module, "cluster", _joined),
            patch.dict(os.environ, self.server),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(ROOT),
            _lenient(),
        ):
            try:
                status = main(list(words))
            finally:
                signal.signal(signal.SIGTERM, handler)
        assert status == expect, f"status {status}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def started_ray(s3_endpoint: str) -> Iterator[SharedRay]:
    """Start a Ray of this machine's CPUs, as a job does, and stop it at the end. Its workers keep the present environment."""
    import ray

    from pipeline.engine.cluster import _WORKERS_WAIT_MS, _set_up_ray_data
    from pipeline.engine.forking import forked_workers
    from pipeline.engine.local_ray import small_ray

    waits = {"idle_worker_killing_time_threshold_ms": _WORKERS_WAIT_MS}
    with fault_proxy(s3_endpoint) as proxy:
        variables = {
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_CLUSTER_AUTOSCALER": "V2",
            "AWS_ENDPOINT_URL": proxy.endpoint,
        }
        with contextlib.ExitStack() as stack:
            with patch.dict(os.environ, variables), contextlib.chdir(ROOT), _lenient():
                stack.enter_context(forked_workers())
                server = {name: os.environ[name] for name in os.environ if name == FORK_SERVER}
                with small_ray():
                    ray.init(
                        address="local",
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _system_config=waits,
                    )
                _set_up_ray_data()
            try:
                yield SharedRay(proxy, server)
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

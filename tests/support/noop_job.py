"""The real driver, planner, commit and publishing, with models that do nothing and without Ray: a job of a second, to be killed.

`run` is the main function of a child process; `start` forks such children from a server that has everything imported.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing.context import ForkServerProcess
from types import SimpleNamespace

import pipeline.engine.run as driver_module
from pipeline.config import JobConfig, load_config
from pipeline.dataset.plan import Shard, read_shard
from pipeline.engine.pools import Pools, Resources
from pipeline.models import roles
from pipeline.shard.commit import Finished, finish
from pipeline.shard.context import Work
from tests.support.outputs import MODELS, recognised
from tests.support.pins import by_role

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.noop_job"])


@contextmanager
def no_cluster(*_: object) -> Iterator[Resources]:
    yield Resources(cpus=2.0, gpus=0.0, memory_bytes=8e9, nodes=1, node_cpus=2.0)


def _run_shards(
    work: Work, shards: list[Shard], _pools: Pools, _config: JobConfig, on_finished: Callable[[Finished], None]
) -> None:
    for shard in shards:
        on_finished(finish(work, shard, recognised(read_shard(work.store, shard), shard.number), {"prepare": 0.0}))


def run(manifest: str, output: str, environment: Mapping[str, str], room_bytes: int | None) -> None:
    """Annotate; the process ends with 0, or with 1 and a traceback."""
    os.environ.update(environment)
    if room_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))
    driver_module.cluster = no_cluster
    driver_module.run_shards = _run_shards
    roles.choose = lambda *_, **__: by_role({"fusion/en": "m"})
    driver_module.Pinning = lambda *_: nullcontext(
        SimpleNamespace(warnings=(), result=lambda: (MODELS, {"audio_embedding": 4}))
    )
    options = {"partition_by": "speaker", "embeddings": "audio", "shard_rows": 2, "audio_root": "/a"}
    config = load_config(None, {"manifest": [manifest], "output": output, **options})
    driver_module.Driver(config, io.StringIO()).run()
    sys.stdout.flush()
    os._exit(0)  # what is not flushed by now was not promised; s3fs would take a second to close its session


def start(
    manifest: str, output: str, environment: Mapping[str, str], *, room_bytes: int | None = None
) -> ForkServerProcess:
    """Start a job in a process of its own; a write past `room_bytes` of one file fails as on a full disk."""
    process = _context.Process(target=run, args=(manifest, output, dict(environment), room_bytes))
    process.start()
    return process

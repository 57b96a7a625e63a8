"""The functions of a run that need Ray. They import it when they are called.

The import takes 0.8 s of a core, pandas included. The first line of a job appears before it, and jobs with nothing to do, dry
runs and refused options do without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from pipeline.config import JobConfig
from pipeline.dataset.plan import Shard
from pipeline.engine.pools import Pools, Resources
from pipeline.manifest.checked import Check
from pipeline.manifest.staging import Staging
from pipeline.shard.commit import Finished
from pipeline.shard.context import Work

if TYPE_CHECKING:
    from pipeline.engine.reading import Reading


def cluster(out: TextIO = sys.stderr) -> AbstractContextManager[Resources]:
    """Join or start a Ray cluster: see `pipeline.engine.cluster.cluster`."""
    from pipeline.engine import cluster as module

    return module.cluster(out)


def run_shards(
    work: Work, shards: Iterable[Shard], pools: Pools, config: JobConfig, on_finished: Callable[[Finished], None]
) -> None:
    """Annotate and commit shards: see `pipeline.engine.stages.run_shards`."""
    from pipeline.engine import stages

    stages.run_shards(work, shards, pools, config, on_finished)


def tasks_start() -> bool:
    """Return whether the cluster starts a task soon: see `pipeline.engine.reading_tasks.tasks_start`."""
    from pipeline.engine import reading_tasks

    return reading_tasks.tasks_start()


def stage_by_tasks(staging: Staging, reading: Reading, check: Check, *, audio_optional: bool) -> None:
    """Read large manifests by tasks: see `pipeline.engine.reading_tasks.stage_by_tasks`."""
    from pipeline.engine import reading_tasks

    reading_tasks.stage_by_tasks(staging, reading, check, audio_optional=audio_optional)


def visible_resources() -> Resources:
    """Return the cluster's resources, or this machine's without its GPUs, which only Ray detects."""
    if os.environ.get("RAY_ADDRESS"):
        with cluster() as resources:
            return resources
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    return Resources(cpus=cpus, gpus=0, memory_bytes=memory, nodes=1, node_cpus=cpus)

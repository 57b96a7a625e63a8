"""Sharing of a cluster between jobs of this pipeline: each sizes its pools for an equal share of the present nodes.

A job is known to the others by its crash tracker, an actor that it has while it runs shards. Jobs beyond those that fit at
the same time, one actor of each stage for each, wait for their turn in the order in which they joined the cluster.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.engine.pools import POOL_SHARE, Pools, Resources
from pipeline.engine.watchdog import RestartNeeded

_log = logging.getLogger(__name__)
_SHRINK_AFTER_S, _GROW_AFTER_S = 15.0, 60.0
"""Time that a new number of jobs must last before pools are changed. Growing loads the models again, so it is less urgent."""
_LOOK_EVERY_S = 5.0
_TRACKER = "CrashTracker"
_WORKER = "MapWorker(MapBatches("


@dataclass
class Share:
    """The share of one execution: the CPUs of the cluster for each of `jobs` jobs. Asks for a restart when it should change."""

    jobs: int
    cpus: float
    _since: float | None = field(init=False, default=None)

    def check(self, jobs: int, cpus: float, now: float) -> None:
        """Compare the present number of jobs and the cluster's CPUs.

        A share grows when it would be twice as large, since that loads the models again. A job alone needs no restart when
        nodes join: its pools follow them.

        Args:
            now: monotonic time in seconds.
        Raises: RestartNeeded when the difference has lasted.
        """
        shrinks = jobs > self.jobs
        if not shrinks and (self.jobs == 1 or cpus / jobs < 2 * self.cpus / self.jobs):
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= (_SHRINK_AFTER_S if shrinks else _GROW_AFTER_S):
            raise RestartNeeded(
                f"{jobs} jobs share the cluster of {cpus:g} CPUs, {self.jobs} with {self.cpus:g} before: pools are sized for an "
                "equal share, and the unfinished shards are restarted."
            )


def all_actors() -> list[Mapping[str, Any]]:
    """Return Ray's records of the living and waiting actors of all jobs."""
    # private API, as in stages.py
    return [actor for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]


def jobs_of(actors: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the jobs that run shards, in the order in which they joined the cluster."""
    return sorted({actor["JobID"] for actor in actors if actor["ActorClassName"] == _TRACKER})


def actors_by_job(actors: Iterable[Mapping[str, Any]], own: str) -> dict[str, int]:
    """Return the number of running actors in pools of Ray Data, by job, without the job `own`."""
    running = (actor for actor in actors if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith(_WORKER))
    return dict(sorted(Counter(actor["JobID"] for actor in running if actor["JobID"] != own).items()))


def most_jobs(pools: Pools, resources: Resources) -> int:
    """Return the number of jobs that fit at the same time, with an actor of each stage for each; at least 1."""
    cpus, gpus = (sum(getattr(pool, name) for pool in pools.pools) for name in ("cpus", "gpus"))
    fitting = [POOL_SHARE * resources.cpus / cpus, *([resources.gpus / gpus] if gpus else [])]
    return max(1, int(min(fitting) + 1e-6))


def turn(jobs: Sequence[str], own: str, most: int) -> tuple[int, int]:
    """Return how many jobs share the cluster, and how many have to end before it is this one's turn."""
    place = jobs.index(own) if own in jobs else len(jobs)
    return min(max(1, len(jobs)), most), max(0, place - most + 1)


def wait_for_turn(pools: Pools, present: Callable[[], Resources]) -> int:
    """Wait until this job is among those that fit on the cluster. Returns: the number of jobs that share it.

    Args:
        present: returns the cluster's present resources.
    """
    own, told = ray.get_runtime_context().get_job_id(), False
    while True:
        jobs, most = jobs_of(all_actors()), most_jobs(pools, present())
        sharing, before = turn(jobs, own, most)
        if not before:
            return sharing
        if not told:
            told = True
            _log.warning(
                "warning: jobs %s share the cluster, which has room for %d at the same time; waiting until %d of them end",
                ", ".join(jobs), most, before,
            )  # fmt: skip
        time.sleep(_LOOK_EVERY_S)

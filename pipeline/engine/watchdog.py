"""The stall detector: finds a job whose workers cannot start or keep dying, where Ray silently waits or restarts for ever.

A job is stuck while a pool has waiting actors and no running one, or while no stage is processing a shard. A finished
shard, a started actor or a new node, such as one from an autoscaler, resets the waiting time. After two minutes the job
reports what it waits for, and after `--wait-for-workers-s` it ends. If a node was lost, the job is restarted instead, once
for each loss: Ray starts the actors of the lost node on the remaining nodes, where they may occupy the resources that
another stage needs to recompute the lost shards.

Dead workers are reported at the next check, with the cause. The job continues while other actors of their pool run. A pool
in which no actor survives its start ends the job after a minute and `MOST_DEATHS` deaths of each actor. Imports no Ray.
"""

from __future__ import annotations

import logging
import math
import operator
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from pipeline.engine.pools import Pool
from pipeline.errors import JobError, NoWorkersError

_log = logging.getLogger(__name__)
_CHECK_EVERY_S = 10.0
_WARN_AFTER_S, _WARN_EVERY_S = 120.0, 600.0
MOST_DEATHS = 3
"""Deaths of each actor, in a pool where none runs, that end the job. Fewer may be a temporary shortage of memory."""
_DYING_FOR_S = 60.0
TASKS = "task"
"""Key used instead of a stage in counts of deaths, for the workers that prepare and commit shards."""
OUT_OF_MEMORY = (
    "Ray ended it because its node ran out of memory (by default at 95 % in use: RAY_memory_usage_threshold)"
)
CRASHED = "its process was killed or crashed, usually by the kernel for lack of memory (see dmesg on its node)"


class RestartNeeded(Exception):
    """Restart request: the job hangs after losing a node, and pools sized for the remaining nodes may work."""


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """A cluster snapshot.

    Attributes:
        alive: running actors by stage; permanently dead ones are neither here nor in `waiting`.
        waiting: actors by stage that have not started.
        under_way: steps of shards that are running on a living node.
        nodes: CPUs, GPUs and bytes of memory of every living node, by its id.
        deaths: number of worker deaths so far, by stage or `TASKS`.
        causes: the cause of the last death as a sentence, by stage or `TASKS`.
        others: number of running actors of other jobs, by the job's id.
    """

    alive: Mapping[str, int]
    waiting: Mapping[str, int]
    under_way: int
    nodes: Mapping[str, tuple[float, float, float]]
    deaths: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """One worker process of the job that died: its node, process id and cause of death."""

    node: str
    pid: int
    cause: str


@dataclass(frozen=True, slots=True)
class ActorState:
    """One actor of the job, as Ray lists it.

    Attributes:
        stage: the stage whose pool it belongs to; None for other actors.
        state: Ray's name of the state, such as ALIVE or DEAD.
        restarts: number of times that Ray has started it again.
    """

    stage: str | None
    state: str
    restarts: int
    node: str
    pid: int


def deaths_by_stage(
    actors: Collection[ActorState], dead: Sequence[DeadWorker], stages: Iterable[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Count deaths by stage for a cluster snapshot, and find the cause of the last one for each stage.

    Ray's table of actors gives the number of restarts of each; its table of workers, which names no actor, gives the causes.

    Args:
        dead: dead workers in the order of their deaths.
    Returns: the numbers of deaths, and the causes.
    """
    by_process = {(worker.node, worker.pid): worker.cause for worker in dead}
    deaths, causes = {}, {}
    for stage in stages:
        restarted = [actor for actor in actors if actor.stage == stage and actor.restarts]
        deaths[stage] = sum(actor.restarts for actor in restarted if actor.state != "DEAD")
        known = [by_process.get((actor.node, actor.pid)) for actor in restarted]
        last = next((cause for cause in known if cause), dead[-1].cause if dead else None)
        if last:
            causes[stage] = last
    deaths[TASKS] = max(0, len(dead) - sum(actor.restarts for actor in actors))
    if dead:
        causes[TASKS] = dead[-1].cause
    return deaths, causes


class StallDetector:
    """The stall detector; decides at each cluster snapshot whether to keep waiting.

    Args:
        pools: the pools that the job requests.
        task_cpus: CPUs of a task that prepares or commits a shard.
        limit_s: longest time stuck; 0 for no limit.
    """

    def __init__(self, pools: Sequence[Pool], *, task_cpus: float, limit_s: float) -> None:
        self._pools, self._task_cpus, self._limit_s = pools, task_cpus, limit_s
        self._finished = self._alive = 0
        self._nodes: set[str] = set()
        self._since: float | None = None
        self._warned: float | None = None
        self._deaths_before: dict[str, int] = {}
        self._deaths_reported: dict[str, tuple[int, float]] = {}

    def check(self, snapshot: ClusterSnapshot, finished: int, now: float) -> None:
        """Process one cluster snapshot; logs warnings.

        Args:
            finished: number of shards finished so far.
            now: monotonic time in seconds.
        Raises: JobError beyond the limit or when all actors of a pool keep dying; RestartNeeded earlier if a node was lost.
        """
        self._report_deaths(snapshot, now)
        alive = sum(snapshot.alive.values())
        news = finished > self._finished or alive > self._alive or bool(set(snapshot.nodes) - self._nodes)
        self._finished, self._alive = finished, alive
        self._nodes |= set(snapshot.nodes)
        stuck = self._stuck(snapshot)
        if stuck is None or news or self._since is None:
            self._since, self._warned = now, None
            return
        waited_s = now - self._since
        if self._limit_s and waited_s >= min(_DYING_FOR_S, self._limit_s) and not self._nodes - set(snapshot.nodes):
            self._refuse_dying(snapshot)
        if self._limit_s and waited_s >= self._limit_s:
            raise NoWorkersError(
                f"{stuck} Nothing has changed for {_time(waited_s)}, the limit set by --wait-for-workers-s"
            )
        if waited_s >= _WARN_AFTER_S and self._nodes - set(snapshot.nodes):
            raise RestartNeeded(f"{stuck} A node was lost; the unfinished shards are restarted on the remaining nodes.")
        if waited_s >= _WARN_AFTER_S and (self._warned is None or now - self._warned >= _WARN_EVERY_S):
            self._warned = now
            limit = f"at most {_time(self._limit_s)}" if self._limit_s else "without a limit"
            _log.warning("warning: %s Waiting for %s so far, %s (--wait-for-workers-s)", stuck, _time(waited_s), limit)

    def _report_deaths(self, snapshot: ClusterSnapshot, now: float) -> None:
        """Warn about dead workers, for each stage at most every `_WARN_EVERY_S`."""
        for stage, deaths in snapshot.deaths.items():
            reported, reported_at = self._deaths_reported.get(stage, (0, -math.inf))
            if deaths > reported and now - reported_at >= _WARN_EVERY_S:
                self._deaths_reported[stage] = deaths, now
                _log.warning("warning: %s Ray starts new ones.", self._died(stage, deaths - reported, snapshot))
            if snapshot.alive.get(stage, 0):
                self._deaths_before[stage] = deaths

    def _refuse_dying(self, snapshot: ClusterSnapshot) -> None:
        for pool in self._pools:
            stage, waiting = pool.stage, snapshot.waiting.get(pool.stage, 0)
            died = snapshot.deaths.get(stage, 0) - self._deaths_before.get(stage, 0)
            if waiting and not snapshot.alive.get(stage, 0) and died >= MOST_DEATHS * waiting:
                raise NoWorkersError(
                    f"{self._died(stage, died, snapshot)} No {stage} actor survives its start. Give the "
                    "nodes more memory, or use smaller models or fewer actors (--asr-actors, --emotion-actors)"
                )

    def _died(self, stage: str, deaths: int, snapshot: ClusterSnapshot) -> str:
        """Return two sentences: the number and cause of the deaths, and the requested memory."""
        cause = snapshot.causes.get(stage, "Ray gives no cause")
        if stage == TASKS:
            return f"{_plural(deaths, 'worker')} that prepare and commit shards died; {cause}."
        (pool,) = (pool for pool in self._pools if pool.stage == stage)
        requested = (
            f"{pool.memory_bytes / 1e9:.3g} GB of memory"
            if pool.memory_bytes
            else "no memory, as on any single machine"
        )
        largest = max((memory for _, _, memory in snapshot.nodes.values()), default=0.0)
        return (
            f"{_plural(deaths, stage + ' actor')} died; {cause}. Each loads models of {pool.model_bytes / 1e9:.3g} GB and "
            f"requests {requested} from Ray; the largest node has {largest / 1e9:.3g} GB for actors."
        )

    def _stuck(self, snapshot: ClusterSnapshot) -> str | None:
        cpus, gpus = (sum(node[resource] for node in snapshot.nodes.values()) for resource in (0, 1))
        cluster = f"the cluster has {_plural(cpus, 'CPU')} and {_plural(gpus, 'GPU')} on {_plural(len(snapshot.nodes), 'node')}"
        for job, actors in snapshot.others.items():
            cluster += f", job {job} holds {_plural(actors, 'actor')}"
        for pool in self._pools:
            if snapshot.waiting.get(pool.stage, 0) and not snapshot.alive.get(pool.stage, 0):
                each = f"{_plural(pool.cpus, 'CPU')} and {_plural(pool.gpus, 'GPU')}"
                each += f" and {pool.memory_bytes / 1e9:.3g} GB" if pool.memory_bytes else ""
                needs = (pool.cpus, pool.gpus, pool.memory_bytes)
                fits = any(all(map(operator.ge, node, needs)) for node in snapshot.nodes.values())
                why = (
                    "which is enough for one: other work uses it, the models are still loading, or workers die at their start."
                    if fits
                    else "and no node is large enough for one."
                )
                waiting = snapshot.waiting[pool.stage]
                return f"no {pool.stage} actor runs: {waiting} requested, each needs {each}; {cluster}, {why}"
        if not snapshot.under_way:
            return f"no stage is processing a shard: each task needs {_plural(self._task_cpus, 'CPU')}; {cluster}."
        return None


@contextmanager
def detecting_stalls(
    detector: StallDetector, take_snapshot: Callable[[], ClusterSnapshot | None], finished: Callable[[], int]
) -> Iterator[None]:
    """Run the stall detector every few seconds during the block, and interrupt the block when it raises.

    Must be entered in the main thread, where a signal interrupts the block as Ctrl-C would.

    Args:
        detector: the stall detector.
        take_snapshot: takes a cluster snapshot; None when Ray does not answer.
        finished: returns the number of finished shards.
    Raises: the exceptions of `take_snapshot` and of `StallDetector.check`.
    """
    ended, errors = threading.Event(), list[JobError | RestartNeeded]()
    main = threading.get_ident()

    def watch() -> None:
        while not ended.wait(_CHECK_EVERY_S):
            try:
                if (snapshot := take_snapshot()) is not None:
                    detector.check(snapshot, finished(), time.monotonic())
            except (JobError, RestartNeeded) as error:
                errors.append(error)
                if not ended.is_set():
                    signal.pthread_kill(main, signal.SIGUSR1)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    previous = signal.signal(signal.SIGUSR1, _interrupt)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if errors:
            raise errors[0] from None
        raise
    finally:
        ended.set()
        watcher.join(_CHECK_EVERY_S)
        signal.signal(signal.SIGUSR1, previous)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _plural(count: float, unit: str) -> str:
    return f"{count:.3g} {unit}{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

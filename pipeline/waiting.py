"""How long a job waits for workers that cannot start: Ray itself waits for ever, and says nothing. No Ray here.

A job is stuck while a pool has actors that wait and none that runs, or while no stage has a shard in hand. A shard that
is finished, an actor that starts or a node that joins ends that; so does an autoscaler, whenever its machines come. After
two minutes the job says what it waits for, and after `--wait-for-workers-s` it ends. Where a node was lost it starts anew
instead, once for each loss: Ray starts the actors of the lost node on those that are left, where they may hold the place
that another stage needs to make the lost shards again.
"""

from __future__ import annotations

import logging
import operator
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pipeline.errors import JobError, NoWorkersError
from pipeline.pools import Pool

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 10.0
_WARN_AFTER_S, _WARN_EVERY_S = 120.0, 600.0


class StartOver(Exception):
    """The job hangs since a node was lost; pools sized for the nodes that are left may do."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What Ray says at one moment.

    Attributes:
        alive, waiting: actors by stage; those that are dead for good are in neither.
        under_way: shards that some stage has in hand on a living node.
        nodes: CPUs, GPUs and bytes of memory of every living node, by its id.
    """

    alive: Mapping[str, int]
    waiting: Mapping[str, int]
    under_way: int
    nodes: Mapping[str, tuple[float, float, float]]


class Patience:
    """Decides, look by look, whether to wait on.

    Args:
        pools: what the job asks for.
        task_cpus: CPUs of a task that prepares or commits a shard.
        limit_s: longest time stuck; 0 for ever.
    """

    def __init__(self, pools: Sequence[Pool], *, task_cpus: float, limit_s: float) -> None:
        self._pools, self._task_cpus, self._limit_s = pools, task_cpus, limit_s
        self._finished = self._alive = 0
        self._nodes: set[str] = set()
        self._since: float | None = None
        self._warned: float | None = None

    def look(self, seen: Seen, finished: int, now: float) -> None:
        """Take in what is seen, with the shards finished so far; a warning is logged.

        Raises: JobError past the limit, StartOver before that when a node was lost.
        """
        alive = sum(seen.alive.values())
        news = finished > self._finished or alive > self._alive or bool(set(seen.nodes) - self._nodes)
        self._finished, self._alive = finished, alive
        self._nodes |= set(seen.nodes)
        stuck = self._stuck(seen)
        if stuck is None or news or self._since is None:
            self._since, self._warned = now, None
            return
        waited_s = now - self._since
        if self._limit_s and waited_s >= self._limit_s:
            raise NoWorkersError(
                f"{stuck} For {_time(waited_s)} nothing has changed, and --wait-for-workers-s allows no more"
            )
        if waited_s >= _WARN_AFTER_S and self._nodes - set(seen.nodes):
            raise StartOver(f"{stuck} A node was lost: what is not done starts anew on those that are left.")
        if waited_s >= _WARN_AFTER_S and (self._warned is None or now - self._warned >= _WARN_EVERY_S):
            self._warned = now
            until = f"up to {_time(self._limit_s)}" if self._limit_s else "for ever"
            _log.warning("warning: %s Waiting for %s, %s (--wait-for-workers-s)", stuck, _time(waited_s), until)

    def _stuck(self, seen: Seen) -> str | None:
        cpus, gpus = (sum(node[held] for node in seen.nodes.values()) for held in (0, 1))
        cluster = (
            f"the cluster has {_plural(cpus, 'CPU')} and {_plural(gpus, 'GPU')} on {_plural(len(seen.nodes), 'node')}"
        )
        for pool in self._pools:
            if seen.waiting.get(pool.stage, 0) and not seen.alive.get(pool.stage, 0):
                each = f"{_plural(pool.cpus, 'CPU')} and {_plural(pool.gpus, 'GPU')}"
                each += f" and {pool.memory_bytes / 1e9:.3g} GB" if pool.memory_bytes else ""
                needs = (pool.cpus, pool.gpus, pool.memory_bytes)
                fits = any(all(map(operator.ge, node, needs)) for node in seen.nodes.values())
                why = (
                    "which is enough for one: other work holds it, the models are still loading, or workers die as they start."
                    if fits else "and no node is large enough for one."
                )  # fmt: skip
                asked = seen.waiting[pool.stage]
                return f"no {pool.stage} actor runs: of {asked} asked for each needs {each}; {cluster}, {why}"
        if not seen.under_way:
            return f"no stage has a shard in hand: tasks ask for {_plural(self._task_cpus, 'CPU')} each; {cluster}."
        return None


@contextmanager
def bounded(patience: Patience, look: Callable[[], Seen | None], finished: Callable[[], int]) -> Iterator[None]:
    """Look every few seconds while the block runs, and end it, wherever it waits, when patience ends.

    To be entered in the main thread: a signal interrupts the block there as Ctrl-C would.

    Args:
        look: asks Ray; None when it does not answer just now.
    Raises: what `Patience.look` does.
    """
    ended, refusals = threading.Event(), list[JobError | StartOver]()
    main = threading.get_ident()

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            seen = look()
            try:
                if seen is not None:
                    patience.look(seen, finished(), time.monotonic())
            except (JobError, StartOver) as refusal:
                refusals.append(refusal)
                if not ended.is_set():
                    signal.pthread_kill(main, signal.SIGUSR1)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    previous = signal.signal(signal.SIGUSR1, _interrupt)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if refusals:
            raise refusals[0] from None
        raise
    finally:
        ended.set()
        watcher.join(_LOOK_EVERY_S)
        signal.signal(signal.SIGUSR1, previous)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _plural(count: float, unit: str) -> str:
    return f"{count:.3g} {unit}{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

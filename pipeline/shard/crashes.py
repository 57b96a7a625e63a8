"""The crash tracker: finds the utterance that kills its process. Its state is kept outside that process.

A step (transcribe or recognise of one shard) that starts a second time has died before. From then on it processes its lines
one at a time and reports each line that it enters. A line in which the step dies again is a suspect; after `MOST_DEATHS` such
deaths, `MOST_DEATHS + 1` attempts in all, it is rejected without being processed. The other lines give the same results as
in a batch. If the process died for another reason, such as memory taken by another process, the shard is only processed
once more, line by line. A death is not counted if its node is lost by the time of counting, unless the line was being
processed on more than `MOST_LOST_NODES` lost nodes: then the line may be the cause.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import ConfigError, JobError, Reason, Reject, Stage

MOST_DEATHS = 2
MOST_LOST_NODES = 5


class Watch(Protocol):
    """The interface by which a step reports its position to the crash tracker."""

    def begin(self) -> dict[int, int] | None:
        """Start the step. Returns: None the first time; afterwards the number of deaths in each suspect line."""

    def enter(self, line: int) -> None:
        """Report the next line; returns once that is recorded."""

    def end(self) -> None:
        """Report that the step has finished."""


@dataclass
class CrashTracker:
    """The crash tracker: starts and deaths of every unfinished step, by `<stage> <shard>`, and the error that ends the run.

    Memory: a few bytes per step.
    """

    _starts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _nodes: dict[str, str] = field(default_factory=dict)
    _current: dict[str, int] = field(default_factory=dict)
    _failure: JobError | ConfigError | None = None
    _deaths: dict[str, dict[int, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def begin(self, step: str, node: str = "") -> dict[int, list[str]] | None:
        """Record the start of a step on a node. Returns: as `Watch.begin`, with the nodes of the deaths instead of counts."""
        self._starts[step] += 1
        if step in self._current:
            self._deaths[step][self._current.pop(step)].append(self._nodes[step])
        self._nodes[step] = node
        return {line: [*nodes] for line, nodes in self._deaths[step].items()} if self._starts[step] > 1 else None

    def enter(self, step: str, line: int) -> None:
        """Record the line that a step processes next."""
        self._current[step] = line

    def under_way(self, nodes: Container[str]) -> int:
        """Count the unfinished steps on these nodes, including those of dead processes until another process takes over."""
        return sum(node in nodes for node in self._nodes.values())

    def fail(self, error: JobError | ConfigError) -> None:
        """Record the error that ended a step or the start of a model's process; only the first is kept."""
        self._failure = self._failure or error

    def failure(self) -> JobError | ConfigError | None:
        """Return the first recorded error."""
        return self._failure

    def end(self, step: str) -> None:
        """Forget a finished step."""
        for kept in (self._starts, self._nodes, self._current, self._deaths):
            kept.pop(step, None)


@dataclass(frozen=True, slots=True)
class LocalWatch:
    """A `Watch` that reports to a crash tracker in this process."""

    tracker: CrashTracker
    step: str

    def begin(self) -> dict[int, int] | None:
        """See `Watch`."""
        return count_deaths(self.tracker.begin(self.step), {""})

    def enter(self, line: int) -> None:
        """See `Watch`."""
        self.tracker.enter(self.step, line)

    def end(self) -> None:
        """See `Watch`."""
        self.tracker.end(self.step)


class Unwatched:
    """A `Watch` that records nothing, for a caller that runs all steps in its own process."""

    def begin(self) -> dict[int, int] | None:
        """See `Watch`."""
        return None

    def enter(self, line: int) -> None:
        """See `Watch`."""

    def end(self) -> None:
        """See `Watch`."""


UNWATCHED = Unwatched()


def count_deaths(deaths: Mapping[int, Sequence[str]] | None, living: Container[str]) -> dict[int, int] | None:
    """Turn the nodes of deaths into the counts that `Watch.begin` returns.

    Args:
        deaths: the nodes of the deaths in each line, as `CrashTracker.begin` returns them.
        living: nodes that are still alive.
    """
    if deaths is None:
        return None
    counts = {}
    for line, nodes in deaths.items():
        on_living = sum(node in living for node in nodes)
        counts[line] = on_living if len(nodes) - on_living <= MOST_LOST_NODES else len(nodes)
    return counts


def lethal(deaths: int, stage: Stage) -> Reject:
    """Return the reject of a line that killed its process too often."""
    detail = f"its process died {deaths + 1} times, {deaths} of them while it processed this utterance alone"
    return Reject(Reason.INTERNAL, detail, stage, attempts=deaths + 1)

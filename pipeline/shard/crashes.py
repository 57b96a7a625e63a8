"""Which utterance killed its process: kept outside the process, asked again by the next one.

A step (transcribe or recognise of one shard) that starts a second time has died before. From then on it goes through its
lines one at a time and says which one it enters; a line inside which it dies again is the suspect, and after `MOST_DEATHS` of
them, `MOST_DEATHS + 1` attempts in all, it is rejected without being touched. Neighbours are done singly and give what
they would have given. The process may die for other reasons (memory that somebody else took): then the shard is done once
more, singly. A death whose node is gone too, by the time it is counted, is not counted, unless the line was in hand on more than
`MOST_LOST_NODES` of them: then it may well be what ends them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import Reason, RejectedRow, Stage

MOST_DEATHS = 2
MOST_LOST_NODES = 5


class Watch(Protocol):
    """How one step tells the ledger where it is."""

    def begin(self) -> dict[int, int] | None:
        """Start the step. Returns: None the first time; afterwards the deaths in each line that is a suspect."""

    def enter(self, line: int) -> None:
        """Say, and have noted before anything else happens, that this line is next."""

    def end(self) -> None:
        """The step is through."""


@dataclass
class Ledger:
    """Starts and deaths of every step that is under way, by `<stage> <shard>`; of a few bytes each."""

    _starts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _nodes: dict[str, str] = field(default_factory=dict)
    _inside: dict[str, int] = field(default_factory=dict)
    _deaths: dict[str, dict[int, list[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def begin(self, step: str, node: str = "") -> dict[int, list[str]] | None:
        """See `Watch`. Args: node: where. Returns: instead of how many deaths, on which nodes."""
        self._starts[step] += 1
        if step in self._inside:
            self._deaths[step][self._inside.pop(step)].append(self._nodes[step])
        self._nodes[step] = node
        return {line: [*nodes] for line, nodes in self._deaths[step].items()} if self._starts[step] > 1 else None

    def enter(self, step: str, line: int) -> None:
        """See `Watch`."""
        self._inside[step] = line

    def under_way(self, nodes: Container[str]) -> int:
        """How many steps have begun on these nodes and are not through; a dead process's too, until another takes them up."""
        return sum(node in nodes for node in self._nodes.values())

    def end(self, step: str) -> None:
        """See `Watch`."""
        for kept in (self._starts, self._nodes, self._inside, self._deaths):
            kept.pop(step, None)


@dataclass(frozen=True, slots=True)
class LedgerWatch:
    """A watch on a ledger in this process."""

    ledger: Ledger
    step: str

    def begin(self) -> dict[int, int] | None:
        """See `Watch`."""
        return count_deaths(self.ledger.begin(self.step), {""})

    def enter(self, line: int) -> None:
        """See `Watch`."""
        self.ledger.enter(self.step, line)

    def end(self) -> None:
        """See `Watch`."""
        self.ledger.end(self.step)


class Unwatched:
    """For a caller whose death is everybody's."""

    def begin(self) -> dict[int, int] | None:
        """See `Watch`."""
        return None

    def enter(self, line: int) -> None:
        """See `Watch`."""

    def end(self) -> None:
        """See `Watch`."""


def count_deaths(found: Mapping[int, Sequence[str]] | None, living: Container[str]) -> dict[int, int] | None:
    """What `Watch.begin` returns, of what the ledger says. Args: living: the nodes that are still there."""
    if found is None:
        return None
    counts = {}
    for line, nodes in found.items():
        there = sum(node in living for node in nodes)
        counts[line] = there if len(nodes) - there <= MOST_LOST_NODES else len(nodes)
    return counts


def lethal(deaths: int, stage: Stage) -> RejectedRow:
    """The reject of a line that killed its process too often."""
    detail = f"the process that worked on it died {deaths + 1} times, {deaths} of them with nothing else in hand"
    return RejectedRow(Reason.INTERNAL, detail, stage, attempts=deaths + 1)

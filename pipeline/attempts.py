"""Which utterance killed its process: kept outside the process, asked again by the next one.

A step (transcribe or recognise of one shard) that starts a second time has died before. From then on it goes through its
lines one at a time and says which one it enters; a line inside which it dies again is the suspect, and after `MOST_DEATHS` of
them, `MOST_DEATHS + 1` attempts in all, it is rejected without being touched. Neighbours are done singly and give what
they would have given. The process may die for other reasons (a preempted node): then the shard is done once more, singly.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import Reason, RejectedRow, Stage

MOST_DEATHS = 2


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
    _inside: dict[str, int] = field(default_factory=dict)
    _deaths: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def begin(self, step: str) -> dict[int, int] | None:
        """See `Watch`."""
        self._starts[step] += 1
        if step in self._inside:
            self._deaths[step][self._inside.pop(step)] += 1
        return dict(self._deaths[step]) if self._starts[step] > 1 else None

    def enter(self, step: str, line: int) -> None:
        """See `Watch`."""
        self._inside[step] = line

    def under_way(self) -> int:
        """How many steps have begun and are not through; those of a dead process too, until another takes them up."""
        return len(self._starts)

    def end(self, step: str) -> None:
        """See `Watch`."""
        for kept in (self._starts, self._inside, self._deaths):
            kept.pop(step, None)


@dataclass(frozen=True, slots=True)
class LedgerWatch:
    """A watch on a ledger in this process."""

    ledger: Ledger
    step: str

    def begin(self) -> dict[int, int] | None:
        """See `Watch`."""
        return self.ledger.begin(self.step)

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


def lethal(deaths: int, stage: Stage) -> RejectedRow:
    """The reject of a line that killed its process too often."""
    detail = f"the process that worked on it died {deaths + 1} times, {deaths} of them with nothing else in hand"
    return RejectedRow(Reason.INTERNAL, detail, stage, attempts=deaths + 1)

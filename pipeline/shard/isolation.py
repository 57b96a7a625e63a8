"""Isolation of the utterance that makes a batch fail, so that its failure does not cost the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import ConfigError, JobError, Reason, Reject, RejectedRow, Stage
from pipeline.shard.crashes import MOST_DEATHS, Watch, lethal
from pipeline.shard.work_table import Waveforms

T = TypeVar("T")
M = TypeVar("M")


def guard(work: Callable[[], T], stage: Stage) -> T | Reject:
    """Run the work of one row; its failure, expected or not, becomes the reject of that row alone.

    Raises: JobError, ConfigError: failures that no row causes.
    """
    try:
        return work()
    except RejectedRow as error:
        return error.reject
    except (JobError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - the one row guard; the type is recorded and the rate is bounded in `finish`
        name = type(error).__name__
        # compared by name: torch defines it in two modules, and torch must not be imported for this
        memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
        return Reject(Reason.OUT_OF_MEMORY if memory else Reason.INTERNAL, f"{name}: {str(error)[:200]}", stage)


def by_model(
    models: Mapping[int, M], table: pa.Table, waveforms: Waveforms, *, needs_audio: bool = True
) -> Iterator[tuple[M, list[int]]]:
    """Group lines into calls of one model: all lines with audio, then each recording that must be decoded again.

    Args:
        models: the model of each line, in order.
    """
    groups: dict[tuple[M, int | None], list[int]] = {}
    rows = table["row"].to_pylist()
    for line, model in models.items():
        carried = not needs_audio or waveforms.carried(line)
        groups.setdefault((model, None if carried else rows[line]), []).append(line)
    for (model, _), lines in groups.items():
        yield model, lines


def isolate(
    work: Callable[[list[int]], T], lines: list[int], stage: Stage, deaths: Mapping[int, int] | None, watch: Watch
) -> Iterator[tuple[list[int], T | Reject]]:
    """Run guarded work on all lines at once, halving a failed batch until the failing line is alone.

    After a death, lines are processed one at a time; each is reported first, and skipped if it has killed too often.

    Args:
        deaths: as `Watch.begin` returns it.
    Yields: groups of lines with their outcome, which together cover `lines`; a reject is always that of a single line.
    """
    if deaths is None:
        yield from _in_halves(work, lines, stage)
        return
    for line in lines:
        if deaths.get(line, 0) >= MOST_DEATHS:
            yield [line], lethal(deaths[line], stage)
        else:
            watch.enter(line)
            yield from _in_halves(work, [line], stage)


def _in_halves(
    work: Callable[[list[int]], T], lines: list[int], stage: Stage
) -> Iterator[tuple[list[int], T | Reject]]:
    outcome = guard(partial(work, lines), stage)
    if not isinstance(outcome, Reject) or len(lines) == 1:
        yield lines, outcome
        return
    half = len(lines) // 2
    for part in (lines[:half], lines[half:]):
        yield from _in_halves(work, part, stage)

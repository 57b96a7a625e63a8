"""What a night costs before it plans: the calls and seconds of a driver's start over an output of many nights."""

from __future__ import annotations

import time

from benchmarks.harness import Result
from pipeline.dataset.history import History
from tests.support.many_nights import CountingStore, MemoryStore, many_nights, start

_NIGHTS = (1, 10, 100, 1000)
_CALL_S = 0.03


def run(*, quick: bool) -> Result:
    """Start over outputs of so many nights, with the index and without it, as after an update from an earlier version."""
    rows, figures = [], {}
    for nights in (1, 4) if quick else _NIGHTS:
        indexed = many_nights(nights)
        plain = MemoryStore(
            {key: value for key, value in indexed.objects.items() if not key.startswith("_runs/index/")}
        )
        measured = [_start(store) for store in (indexed, plain)]
        kib = sum(len(value) for key, value in indexed.objects.items() if key.startswith("_runs/index/")) / 1024
        rows.append(
            (
                f"{nights:,}",
                *(cell for calls, taken_s in measured for cell in (f"{calls:,}", f"{taken_s:.2f} s")),
                f"{kib:,.0f}",
            )
        )
        figures |= {f"calls_{nights}": float(measured[0][0]), f"seconds_{nights}": measured[0][1]}
    return Result(
        title="Nights: the start of a job over an output of earlier nights",
        columns=("earlier nights", "calls", "time", "calls without index", "time without index", "index KiB"),
        rows=rows,
        notes=(
            "nights of three rows, one of them rejected, in a store in memory where each call takes 30 ms and a listing one call "
            "per thousand objects; plans, ids, rejects and the state of every run, with --retry-rejects transient",
            "without index: the first night after an update from a version that had none; that night writes one",
            "before, at commit 76a7972, in the same store: 7,008 calls and 219 s for 1,000 nights",
            "index KiB: all objects of the index, those that a larger one replaced included",
        ),
        figures=figures,
    )


def _start(store: MemoryStore) -> tuple[int, float]:
    counting = CountingStore(store.objects, delay_s=_CALL_S)
    started = time.perf_counter()
    start(History(counting))
    return counting.calls.total(), time.perf_counter() - started

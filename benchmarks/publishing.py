"""Committing and publishing parts that have a reject each, on a local disk."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Result
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import read_shard
from pipeline.dataset.publish import publish
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from tests.support import outputs

_PARTS = (100, 1000, 5000)
_ROWS = 2
"""Rows of a part; the first is rejected."""
_TARGET_S = 8.0


def run(*, quick: bool) -> Result:
    """Commit and publish plans of so many parts."""
    rows, figures = [], {}
    usual = outputs.REJECTED
    try:
        for parts in (20, 40) if quick else _PARTS:
            commit_s, publish_s = _measure(parts)
            rows.append(
                (
                    f"{parts:,}",
                    f"{1000 * commit_s / parts:.1f} ms",
                    f"{publish_s:.2f} s",
                    f"{1000 * publish_s / parts:.2f} ms",
                )
            )
            figures |= {f"commit_ms_{parts}": 1000 * commit_s / parts, f"publish_s_{parts}": publish_s}
    finally:
        outputs.REJECTED = usual
    return Result(
        title="Publishing parts with rejects",
        columns=("parts", "commit, a part", "publish", "publish, a part"),
        rows=rows,
        notes=(
            f"parts of {_ROWS} rows, one of them rejected, on a local disk; commit: from a finished table to the part on disk, "
            "which is synchronised; publish: all receipts and rejected rows read, rejects and report written",
            f"target: 5,000 parts in {_TARGET_S:.0f} s. Before, when each part's rows cost another look at the plan file's "
            "footer: commit 11.9 ms, publish 13 to 19 ms a part, 70 s for 5,000",
            f"10^6 parts by this law take 200 times the last line; load of the machine at the end {os.getloadavg()[0]:.1f} on "
            f"{len(os.sched_getaffinity(0))} cores",
        ),
        figures=figures,
    )


def _measure(parts: int) -> tuple[float, float]:
    """Return the seconds of all commits and of publishing."""
    names = [f"x{number}" for number in range(_ROWS * parts)]
    outputs.REJECTED = tuple(names[::_ROWS])
    with tempfile.TemporaryDirectory(prefix="publishing-") as folder:
        output = f"{folder}/out"
        store = open_store(output)
        records = [{"id": name, "audio": f"/a/{name}.wav", "speaker": "a", "take": 1} for name in names]
        plan = outputs.plan_rows(store, Path(folder) / "m", records, shard_rows=_ROWS)
        work, taken_s = Work(output, plan, AudioRoots.parse(("/a",), [])), 0.0
        for shard in plan.shards():
            table = outputs.recognised(read_shard(store, shard), shard.number)
            started = time.perf_counter()
            finish(work, shard, table, {"prepare": 1.0})
            taken_s += time.perf_counter() - started
        started = time.perf_counter()
        report = publish(store, plan, committed_parts(store, [plan])[plan.plan], {"run_id": plan.plan})
        publish_s = time.perf_counter() - started
    if report["rejected"] != parts or report["parts"] != parts:
        raise RuntimeError(f"{report['rejected']} rejects of {parts} were published")
    return taken_s, publish_s

"""All shards in one execution against the same shards in four, each of which starts the pools again, and the driver's memory.

usage: python -m benchmarks.executions PARTS FILE OPTIONS ...     jobs.annotate, its shards in so many executions
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import Result
from benchmarks.processes import Finished
from benchmarks.processes import run as ran
from tests.support.noop_models import environment, models_of

_SHARDS, _PARTS = 2048, 4
_SHARD_ROWS = 8
_TARGET = 1.05
_TIMEOUT_S = 3600.0
_BEFORE_KB = 4.7
_MEMORY = "memory"
"""File with a line of the driver's resident bytes for each eighth of the shards."""


def run(*, quick: bool) -> Result:
    """Run a quarter of the shards, all of them at once, and all of them in four executions."""
    models, widths = models_of("text")
    shards = 64 if quick else _SHARDS
    jobs: dict[str, tuple[int, Finished]] = {}
    with tempfile.TemporaryDirectory(prefix="executions-") as folder:
        for name, count, parts in (
            ("a quarter", shards // _PARTS, 1),
            ("one execution", shards, 1),
            ("four executions", shards, _PARTS),
        ):
            where = Path(folder) / name.replace(" ", "-")
            where.mkdir()
            armed = {**environment(widths), "MALLOC_ARENA_MAX": "1"}
            jobs[name] = count, ran(_command(where, count, parts, models), env=armed, timeout_s=_TIMEOUT_S)
            jobs[name][1].require(f"{count * _SHARD_ROWS:,} annotated + 0 rejected")
        memory = list(map(int, (Path(folder) / "one-execution" / _MEMORY).read_text().split()))
    seconds = {name: job.wall_s - job.moment("run 000001:") for name, (_, job) in jobs.items()}
    per_shard = (memory[-1] - memory[len(memory) // 2 - 1]) / (shards / 2)
    return Result(
        title="Executions: one for all shards",
        columns=("job", "shards", "planned to published", "ms a shard", "driver MiB"),
        rows=[
            (
                name,
                f"{count:,}",
                f"{seconds[name]:.0f} s",
                f"{1000 * seconds[name] / count:.0f}",
                f"{job.own_peak_bytes / 2**20:.0f}",
            )
            for name, (count, job) in jobs.items()
        ],
        notes=(
            f"shards of {_SHARD_ROWS} rows in mode text, models that answer at once and load in no time: a restart costs only "
            "new processes here, and elsewhere the loading of the models too; MALLOC_ARENA_MAX=1, so that threads do not hide "
            "what memory is kept",
            f"in one execution four times the shards take {seconds['one execution'] / seconds['a quarter']:.2f} times as long as "
            f"a quarter, its start included; target: at most {_PARTS * _TARGET:.2f} times",
            f"driver: {per_shard / 1000:.1f} kB a shard between the middle and the end of one execution; before, an execution "
            f"kept {_BEFORE_KB} kB, most of them Ray Data's statistics of every block, and ended after 4,096 shards",
            f"load of the machine at the end {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores",
        ),
        figures={
            "ratio": seconds["one execution"] / seconds["a quarter"] / _PARTS,
            "four_to_one": seconds["four executions"] / seconds["one execution"],
            "bytes_a_shard": per_shard,
        },
    )


def _command(folder: Path, shards: int, parts: int, models: list[str]) -> list[str]:
    manifest = folder / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for number in range(shards * _SHARD_ROWS):
            row = {"id": f"c{number}", "audio": f"/audio/{number}.wav", "text": f"Sentence {number}.", "language": "en"}
            file.write(json.dumps(row) + "\n")
    options = ["--manifest", str(manifest), "--output", str(folder / "out"), "--audio-root", "/audio", "--no-page"]
    command = [sys.executable, "-m", "benchmarks.executions", str(parts), str(folder / _MEMORY)]
    return [*command, *options, "--shard-rows", str(_SHARD_ROWS), *models]


def main() -> None:
    """Annotate with the shards of a run in several executions, one after another; note the memory at every eighth."""
    import pipeline.engine.run as driver
    from jobs.annotate import main as annotate

    parts, memory, run_shards = int(sys.argv[1]), Path(sys.argv[2]), driver.run_shards

    def in_parts(
        work: Any,  # noqa: ANN401 - passed on as they are
        shards: Iterable[Any],
        pools: Any,  # noqa: ANN401
        config: Any,  # noqa: ANN401
        on_finished: Callable[[Any], None],
    ) -> None:
        all_shards, finished = list(shards), 0

        def count(shard: Any) -> None:  # noqa: ANN401
            nonlocal finished
            finished += 1
            on_finished(shard)
            if finished % max(1, len(all_shards) // 8) == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                with memory.open("a", encoding="ascii") as file:
                    file.write(f"{resident}\n")

        for part in range(parts):
            run_shards(work, all_shards[part::parts], pools, config, count)

    driver.run_shards = in_parts
    sys.exit(annotate(sys.argv[3:]))


if __name__ == "__main__":
    main()

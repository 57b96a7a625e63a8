"""Everything but the models: manifests of 10^4 to 10^7 rows read, planned, run through models that know nothing, committed,
published, resumed and audited, by the commands a user types.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Result
from benchmarks.processes import run as ran
from tests.support.noop_models import environment, models_of

_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
_SHARD_ROWS = 1024
_TIMEOUT_S = 3600.0


def run(*, quick: bool) -> Result:
    """Run one job of each size, then the same command again, then `jobs.verify`."""
    models, _ = models_of("text")
    rows, figures = [], {}
    for size in (1_000, 10_000) if quick else _SIZES:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            found = _measure(Path(folder), size, [*models, "--embeddings", "none"], environment({}))
        rows.append(found)
        figures[f"rows_per_s_{size}"] = float(found[4].replace(",", ""))
    return Result(
        title="Scale: everything but the models",
        columns=(
            "rows",
            "start to plan",
            "planned to published",
            "rows/s planned",
            "rows/s run",
            "files",
            "resume",
            "verify",
            "driver MiB",
            "largest worker MiB",
            "verify MiB",
        ),
        rows=rows,
        notes=(
            "the job's own command in mode text with models that answer at once: every row is read, checked, planned, carried "
            f"through the Ray stages, written and published; shards of {_SHARD_ROWS} rows, JSONL, local disk",
            "start to plan and resume include 10 s and more of imports and Ray's start; rows/s planned does not leave them out",
            "resume: the same command on the finished output; verify reads every footer and id, not all values",
            "checked in each run: status 0, as many rows annotated as the manifest has, verify finds no violation",
        ),
        figures=figures,
    )


def _measure(folder: Path, size: int, models: list[str], armed: Mapping[str, str]) -> tuple[str, ...]:
    manifest, output = folder / "manifest.jsonl", folder / "out"
    with manifest.open("w", encoding="utf-8") as file:
        for number in range(size):
            row = {
                "id": f"call-{number:09d}",
                "audio": f"/audio/{number % 997}/{number}.wav",
                "text": f"Sentence {number}.",
                "duration": 4.0,
                "speaker": f"s{number % 1000}",
            }
            file.write(json.dumps(row) + "\n")
    command = [
        sys.executable,
        "-m",
        "jobs.annotate",
        "--manifest",
        str(manifest),
        "--output",
        str(output),
        "--audio-root",
        "/audio",
        "--no-page",
        *models,
        "--shard-rows",
        str(_SHARD_ROWS),
        "--shard-audio-s",
        "1e9",
    ]
    job = ran(command, env=armed, timeout_s=_TIMEOUT_S)
    planned_s = job.moment("run 000001:")
    job.require(f"{size:,} annotated + 0 rejected")
    resumed = ran(command, env=armed, timeout_s=_TIMEOUT_S)
    resumed.require("Nothing new")
    audit = ran([sys.executable, "-m", "jobs.verify", str(output)], timeout_s=_TIMEOUT_S)
    audit.require("sound")
    files = sum(1 for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output)
    run_s = job.wall_s - planned_s
    return (
        f"{size:,}",
        f"{planned_s:.0f} s",
        f"{run_s:.0f} s",
        f"{size / planned_s:,.0f}",
        f"{size / run_s:,.0f}",
        f"{files:,}",
        f"{resumed.wall_s:.0f} s",
        f"{audit.wall_s:.0f} s",
        _mib(job.own_peak_bytes),
        _mib(job.worker_peak_bytes),
        _mib(audit.own_peak_bytes),
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f}"

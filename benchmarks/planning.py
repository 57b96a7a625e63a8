"""Planning of large manifests: read by one process, and by tasks of a Ray on this machine.

usage: python -m benchmarks.planning MANIFEST FOLDER driver|tasks
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.harness import Result
from benchmarks.processes import Finished
from benchmarks.processes import run as ran

_SIZES = (100_000, 1_000_000)
_SHARD_ROWS = 1024
_TARGET = 1.8
_TIMEOUT_S = 3600.0
_READ, _PLANNED = "read:", "planned:"


def run(*, quick: bool) -> Result:
    """Plan manifests of so many rows in both ways."""
    rows, figures = [], {}
    jobs: dict[str, Finished] = {}
    for size in (2_000, 4_000) if quick else _SIZES:
        with tempfile.TemporaryDirectory(prefix="planning-") as folder:
            manifest = Path(folder) / "manifest.jsonl"
            with manifest.open("w", encoding="utf-8") as file:
                for number in range(size):
                    file.write(json.dumps(_row(number)) + "\n")
            for way in ("driver", "tasks"):
                command = [sys.executable, "-m", "benchmarks.planning", str(manifest), f"{folder}/{way}", way]
                jobs[way] = ran(command, timeout_s=_TIMEOUT_S)
            kept = [_hashes(Path(folder) / way) for way in jobs]
        if kept[0] != kept[1]:
            raise RuntimeError("the plans differ")
        for way, job in jobs.items():
            read_s, planned_s = (_seconds(job, line) for line in (_READ, _PLANNED))
            driver_us, all_us = (1e6 * cpu_s / size for cpu_s in _cpu(job))
            rows.append(
                (
                    f"{size:,}",
                    way,
                    f"{read_s:.1f} s",
                    f"{planned_s:.1f} s",
                    f"{driver_us:.1f}",
                    f"{all_us:.1f}",
                    f"{job.own_peak_bytes / 2**20:.0f}",
                )
            )
            measured = {"read_s": read_s, "planned_s": planned_s, "driver_us": driver_us, "all_us": all_us}
            measured["mib"] = job.own_peak_bytes / 2**20
            figures |= {f"{way}_{name}_{size}": value for name, value in measured.items()}
    size = max(_SIZES) if not quick else 4_000
    faster = figures[f"driver_planned_s_{size}"] / figures[f"tasks_planned_s_{size}"]
    return Result(
        title="Planning: read by one process and by tasks",
        columns=(
            "rows",
            "read by",
            "read",
            "read and planned",
            "driver's CPU us a row",
            "all CPU us a row",
            "driver MiB",
        ),
        rows=rows,
        notes=(
            f"JSON Lines of {len(json.dumps(_row(0)))} bytes a row, local disk, shards of {_SHARD_ROWS} rows; the start of Ray "
            "is not included in the seconds, but in the CPU time",
            f"{faster:.2f} times as fast with tasks; target: {_TARGET} on two cores. Load of the machine at the end "
            f"{os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores",
            "checked in each run: the two plans have the same files, to the byte",
        ),
        figures=figures,
    )


def _row(number: int) -> dict[str, object]:
    return {
        "id": f"call-{number:09d}",
        "audio": f"/audio/{number % 997}/{number}.wav",
        "text": f"Sentence {number}.",
        "duration": 4.0,
        "speaker": f"s{number % 1000}",
    }


def _seconds(job: Finished, beginning: str) -> float:
    return next(float(line.split()[1]) for _, line in job.lines if line.startswith(beginning))


def _cpu(job: Finished) -> tuple[float, float]:
    """Return the CPU seconds of the driver, and of all processes."""
    own = sum(taken for command, taken in job.cpu_s.items() if "benchmarks.planning" in command)
    return own, sum(job.cpu_s.values())


def _hashes(folder: Path) -> dict[str, str]:
    import hashlib

    files = sorted(path for path in (folder / "out").rglob("*") if path.is_file() and path.name != "plan.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Plan one manifest, and print the seconds."""
    import uuid

    from pipeline.config import load_config
    from pipeline.config.settings import SCHEMA_VERSION
    from pipeline.dataset.packing import ShardSize
    from pipeline.dataset.plan import write_plan
    from pipeline.dataset.row_checks import check_rows
    from pipeline.engine.cluster import cluster
    from pipeline.engine.reading import Reading
    from pipeline.manifest.hash_buckets import id_keys
    from pipeline.manifest.staging import Staging
    from pipeline.storage.access import AudioRoots
    from pipeline.storage.store import open_store
    from tests.support.pins import job_settings

    manifest, folder, way = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    config = load_config(None, {"manifest": [manifest], "output": str(folder / "out"), "audio_root": "/audio"})
    roots = AudioRoots.parse(("/audio",), [manifest])
    check = partial(check_rows, config, version=SCHEMA_VERSION, roots=roots, known={"en"})

    def plan() -> tuple[float, float]:
        started = time.perf_counter()
        new_staging = partial(Staging, folder / "staging")
        reading = Reading.of([manifest])
        reading.by_tasks = way == "tasks"
        staging = reading.stage(new_staging, check, audio_optional=False)
        read_s = time.perf_counter() - started
        uuid.uuid4 = lambda: uuid.UUID(int=1)  # names the files
        write_plan(
            open_store(str(folder / "out")), 1, staging.select([], id_keys([])), settings=job_settings(), models={},
            embedding_widths={}, manifests=["m"], size=ShardSize(_SHARD_ROWS, 1e9), needs_text=True,
        )  # fmt: skip
        return read_s, time.perf_counter() - started

    if way == "tasks":
        with cluster():  # hides what is printed
            read_s, planned_s = plan()
    else:
        read_s, planned_s = plan()
    print(_READ, read_s)
    print(_PLANNED, planned_s)


if __name__ == "__main__":
    main()

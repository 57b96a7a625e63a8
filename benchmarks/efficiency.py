"""What the pipeline costs beside its models: job wall time against the pure model time of the same clips, steady state.

Two sizes of the same job, and the difference between them: start-up, planning and publishing fall out. The models either
sleep for the time a device would take, or are real; the pure time of real ones is measured in as many processes of as many
threads as the job has actors.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.harness import RESULTS, ROOT, Result
from benchmarks.processes import run as ran
from benchmarks.workload import clips, write_manifest
from demo.models import options
from tests.noop_models import environment, models_of

_CLIP_S = 4.0
_ACTORS = 2
_TARGET = 1.15
_TIMEOUT_S = 900.0


def run(*, quick: bool) -> Result:
    """Jobs of n and 3n clips, `rounds` times."""
    small, rounds = (16, 1) if quick else (160, 3)
    sleeping, widths = models_of("mean")
    rows = []
    with tempfile.TemporaryDirectory(prefix="efficiency-") as name:
        folder = Path(name)
        manifests = [write_manifest(folder / f"{n}.jsonl", clips([_CLIP_S] * n)) for n in (small, 3 * small)]
        for device_s in (0.25, 0.05):
            extra = [
                _extra_s(manifests, folder, sleeping, environment(widths, device_s_per_audio_s=device_s))
                for _ in range(rounds)
            ]
            pure_s = 2 * small * _CLIP_S * device_s / _ACTORS
            rows.append(_row(f"models that sleep {device_s * _CLIP_S:.1f} s a clip", 2 * small, pure_s, extra))
        pure, extra = [], []
        for _ in range(rounds):
            pure.append(_pure_s(manifests[1], 2 * small))
            extra.append(_extra_s(manifests, folder, options(), {}))
        rows.append(_row("demo models (6 million parameters)", 2 * small, median(pure), extra))
    return Result(
        title="Pipeline efficiency: the job against its models alone",
        columns=("models", "clips", "models alone", "job", "job / models", f"target <= {_TARGET}"),
        rows=rows,
        notes=(
            f"clips of {_CLIP_S:.0f} s with texts, mode mean, {_ACTORS} recognition actors of one thread, shards of 16; the "
            f"difference between jobs of {small} and {3 * small} clips, median (range) of {rounds}",
            "models alone: sleeping time over the actors; real models in two processes, loaded, waveforms in memory",
            "checked in each run: status 0 and every clip annotated",
        ),
    )


def _row(name: str, clips: int, pure_s: float, extra: list[float]) -> tuple[str, ...]:
    share = median(extra) / pure_s
    return (name, f"{clips}", f"{pure_s:.1f} s", f"{median(extra):.1f} s ({min(extra):.1f} to {max(extra):.1f})",
            f"{share:.2f}", "met" if share <= _TARGET else "missed")  # fmt: skip


def _extra_s(manifests: list[Path], folder: Path, models: list[str], env: Mapping[str, str]) -> float:
    """Seconds the larger job takes more than the smaller."""
    walls = []
    for manifest in manifests:
        output = folder / f"out-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "jobs.annotate", "--manifest", str(manifest), "--output", str(output),
                   "--audio-root", str(RESULTS), "--shard-rows", "16", "--emotion-actors", str(_ACTORS), *models]  # fmt: skip
        job = ran(command, env=env, timeout_s=_TIMEOUT_S)
        job.require(f"{int(manifest.stem):,} annotated + 0 rejected")
        walls.append(job.wall_s)
    return walls[1] - walls[0]


def _pure_s(manifest: Path, clips: int) -> float:
    """Wall time of `clips` through the real models in `_ACTORS` processes at once, from the moment all are ready."""
    command = [sys.executable, "-m", "benchmarks.alone", str(manifest), str(clips // _ACTORS)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(_ACTORS)
    ]
    for process in processes:
        process.stdout.readline()
    started = time.perf_counter()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.stdout.readline()
    taken = time.perf_counter() - started
    for process in processes:
        process.communicate()
    return taken

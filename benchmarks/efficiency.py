"""Overhead of the pipeline: steady-state job wall time against the pure model time of the same clips.

Two sizes of the same job, and the difference between them: start-up, planning and publishing fall out. The models either
sleep for the time a device would take, or are real, of the published sizes or small; the pure time of real ones is measured
in as many processes of as many threads as the job has actors.
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
from benchmarks.workload import Models, annotate_command, clips, named, published_models, trained_models, write_manifest
from tests.support.noop_models import environment, models_of

_CLIP_S = 4.0
_ACTORS = 2
_SHARD_ROWS = 16
_TARGET = 1.15
_TIMEOUT_S = 900.0


def run(*, quick: bool) -> Result:
    """Time jobs of n and 3n clips, `rounds` times."""
    small, many, rounds = (16, 16, 1) if quick else (96, 1024, 3)
    rows = []
    with tempfile.TemporaryDirectory(prefix="efficiency-") as name:
        bench = _Bench(Path(name))
        for device_s in (0.1, 0.05):
            rows.append(bench.sleeping(small, rounds, device_s))
        rows.append(bench.real("demo models (6 million parameters)", trained_models(), many, rounds, _SHARD_ROWS))
        if not quick:
            rows.append(bench.real("published sizes (690 million)", published_models(), 16, rounds + 2, 4))
    return Result(
        title="Pipeline efficiency: the job against its models alone",
        columns=("models", "clips", "models alone", "job", "job / models", f"target <= {_TARGET}"),
        rows=rows,
        notes=(
            f"clips of {_CLIP_S:.0f} s with texts, mode mean, {_ACTORS} recognition actors of one thread, shards of "
            f"{_SHARD_ROWS} (4 at the published sizes); the difference between jobs of n and 3n clips, median (range) of "
            f"{rounds} rounds, {rounds + 2} at the published sizes",
            "models alone: sleeping time over the actors; real models in two processes, loaded, waveforms in memory",
            "checked in each run: status 0 and every clip annotated",
        ),
    )


class _Bench:
    """Timings of both sizes of a job, and of the models alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sleeping(self, small: int, rounds: int, device_s: float) -> tuple[str, ...]:
        """Time models that sleep `device_s` for each second of audio."""
        models, widths = models_of("mean")
        env = environment(widths, device_s_per_audio_s=device_s)
        extra = [self._extra_s(small, models, env, _SHARD_ROWS) for _ in range(rounds)]
        pure_s = 2 * small * _CLIP_S * device_s / _ACTORS
        return _row(f"models that sleep {device_s * _CLIP_S:.1f} s a clip", 2 * small, [pure_s] * rounds, extra)

    def real(self, name: str, models: Models, small: int, rounds: int, shard_rows: int) -> tuple[str, ...]:
        """Time real models, alone and then in the job, in each round."""
        pure, extra = [], []
        for _ in range(rounds):
            pure.append(_pure_s(self._manifest(3 * small), 2 * small, models, shard_rows))
            extra.append(self._extra_s(small, named(models), {}, shard_rows))
        return _row(name, 2 * small, pure, extra)

    def _manifest(self, count: int) -> Path:
        return write_manifest(self.folder / f"{count}.jsonl", clips([_CLIP_S] * count))

    def _extra_s(self, small: int, models: list[str], env: Mapping[str, str], shard_rows: int) -> float:
        """Return the extra seconds of the larger job."""
        walls = []
        for count in (small, 3 * small):
            output = self.folder / f"out-{time.monotonic_ns()}"
            options = ("--audio-root", str(RESULTS), "--shard-rows", str(shard_rows), "--emotion-actors", str(_ACTORS))
            command = annotate_command(self._manifest(count), output, models, *options)
            job = ran(command, env=env, timeout_s=_TIMEOUT_S)
            job.require(f"{count:,} annotated + 0 rejected")
            walls.append(job.wall_s)
        return walls[1] - walls[0]


def _row(name: str, clips: int, pure: list[float], extra: list[float]) -> tuple[str, ...]:
    shares = [job_s / pure_s for job_s, pure_s in zip(extra, pure, strict=True)]
    share = median(shares)
    return (
        name,
        f"{clips}",
        f"{median(pure):.1f} s",
        f"{median(extra):.1f} s ({min(extra):.1f} to {max(extra):.1f})",
        f"{share:.2f} ({min(shares):.2f} to {max(shares):.2f})",
        "met" if share <= _TARGET else "missed",
    )


def _pure_s(manifest: Path, clips: int, models: Models, shard_rows: int) -> float:
    """Return the wall time of `clips` in the real models, in `_ACTORS` concurrent processes, from when all are ready."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.alone",
        str(manifest),
        str(clips // _ACTORS),
        str(models.fusion),
        str(models.encoder),
        str(shard_rows),
    ]
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

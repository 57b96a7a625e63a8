"""Timing of variants in turn, and writing of the results to the page."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "bench"
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one variant in each round of a run."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """CPU seconds of this process, all threads, without children."""

    @property
    def median_s(self) -> float:
        """Return the median wall time."""
        return median(self.wall_s)

    def __str__(self) -> str:
        return f"{_short(self.median_s)} ({_short(min(self.wall_s))} to {_short(max(self.wall_s))})"


def interleaved(variants: Mapping[str, Callable[[], object]], *, rounds: int, warm: bool = True) -> dict[str, Timing]:
    """Time each variant once per round, in rotating order, so that other load on the machine affects all.

    Args:
        warm: run each once before, untimed.
    """
    names = list(variants)
    if warm:
        for name in names:
            variants[name]()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timing(*(tuple(column) for column in zip(*pairs, strict=True))) for name, pairs in taken.items()}


def ratio(baseline: Timing, ours: Timing) -> str:
    """Return the speed-up of ours: the median and range over rounds of the ratio within each round."""
    ratios = sorted(theirs / mine for theirs, mine in zip(baseline.wall_s, ours.wall_s, strict=True))
    return f"{median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one benchmark: a table, and notes on how it was measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Notes: sizes, seeds, equality checks, and why a target was missed."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Plain numbers, for comparing runs."""


def publish(name: str, result: Result, *, took_s: float) -> None:
    """Write the result to `build/bench/NAME.json`, and its table to docs/performance.md between the marks of its name."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {**asdict(result), "machine": machine(), "took_s": round(took_s, 1)}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    begin, end = f"<!-- bench {name}: written by `make bench` -->\n", f"<!-- end of {name} -->\n"
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Performance\n"
    if begin not in text:
        text += f"\n{begin}{end}"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + begin + _section(result, took_s) + end + after, encoding="utf-8")


def _section(result: Result, took_s: float) -> str:
    lines = [f"### {result.title}", "", f"| {' | '.join(result.columns)} |", f"|{'---|' * len(result.columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in result.rows]
    lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join([*lines, f"- {machine()}; {took_s / 60:.0f} min.", ""])


def machine() -> str:
    """Return hardware, software and commit on one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    packages = ", ".join(map(_version, ("torch", "ray", "transformers", "faster-whisper")))
    cores = len(os.sched_getaffinity(0))
    hardware = f"{_processor()}, {cores} cores, {memory:.0f} GiB, {_gpu()}"
    return f"{hardware}; Python {platform.python_version()}, {packages}; commit {commit.stdout.strip()}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

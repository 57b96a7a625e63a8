"""A command run to its end, with the memory of its processes and the moment of each line it prints."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.harness import ROOT

_EVERY_S = 0.2


@dataclass
class Watched:
    """What one command did.

    Attributes:
        wall_s: from its start to its end.
        lines: what it printed, each with the seconds since its start.
        peak_bytes: the largest resident memory of the process itself (`driver`), of its largest Ray worker (`worker`), and
            of all its processes together (`tree`; pages they share are counted once for each).
    """

    wall_s: float = 0.0
    status: int | None = None
    lines: list[tuple[float, str]] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=lambda: {"driver": 0, "worker": 0, "tree": 0})

    def moment(self, beginning: str) -> float:
        """Seconds to the first line that begins so. Raises: LookupError."""
        for at_s, line in self.lines:
            if line.startswith(beginning):
                return at_s
        raise LookupError(f"no line begins with {beginning!r}: {self.lines}")


def watched(command: Sequence[str], env: Mapping[str, str] | None = None, *, timeout_s: float = 3600.0) -> Watched:
    """Run a command from the project's folder. Raises: RuntimeError with its last lines when its status is not 0."""
    found, started = Watched(), time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def read() -> None:
        for line in process.stdout or ():
            found.lines.append((time.perf_counter() - started, line.rstrip("\n")))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    root = psutil.Process(process.pid)
    while process.poll() is None:
        _sample(root, found.peak_bytes)
        if time.perf_counter() - started > timeout_s:
            process.kill()
        time.sleep(_EVERY_S)
    found.wall_s, found.status = time.perf_counter() - started, process.returncode
    reader.join(10)
    if found.status != 0:
        raise RuntimeError(f"status {found.status}: " + "\n".join(line for _, line in found.lines[-15:]))
    return found


def _sample(root: psutil.Process, peak_bytes: dict[str, int]) -> None:
    try:
        sizes = {"driver": root.memory_info().rss, "worker": 0, "tree": root.memory_info().rss}
        for child in root.children(recursive=True):
            try:
                resident, name = child.memory_info().rss, " ".join(child.cmdline()[:1])
            except psutil.Error:
                continue
            sizes["tree"] += resident
            if name.startswith("ray::"):
                sizes["worker"] = max(sizes["worker"], resident)
    except psutil.Error:
        return
    for role, size in sizes.items():
        peak_bytes[role] = max(peak_bytes[role], size)

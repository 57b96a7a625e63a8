"""Wall time and peak memory of a process with everything it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.harness import ROOT

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.2
_TREE_EVERY = 10
"""Number of samples per sample of proportional sizes, which make the kernel walk over all pages."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended with status 0.

    Attributes:
        wall_s: from its start to its end.
        peak_bytes: the most memory that it and its descendants held together, looked at every two seconds. A page that
            n processes share counts an nth in each (proportional set size), so that weights which two map count once.
        resident_bytes: the same with shared pages counted in full in each, as `ps` and `top` add up to.
        own_peak_bytes: resident memory of the process itself, looked at five times a second.
        worker_peak_bytes: of the largest of its Ray workers.
        lines: its output on both streams, each line with the seconds since the start.
        output: standard output.
        cpu_s: user and system seconds of the process and each descendant, looked at five times a second, by command line and
            process id.
    """

    wall_s: float
    peak_bytes: int
    resident_bytes: int
    own_peak_bytes: int
    worker_peak_bytes: int
    lines: Sequence[tuple[float, str]]
    output: str
    cpu_s: Mapping[str, float]

    def moment(self, beginning: str) -> float:
        """Return the seconds to the first line with this beginning. Raises: LookupError."""
        for at_s, line in self.lines:
            if line.startswith(beginning):
                return at_s
        raise LookupError(f"no line begins with {beginning!r}")

    def require(self, sentence: str) -> None:
        """Require a sentence in the output. Raises: SystemExit."""
        if not any(sentence in line for _, line in self.lines):
            raise SystemExit(f"{sentence!r} is not in the output: {self.lines[-5:]}")


def run(command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command from the project's root, offline.

    Raises: SystemExit with the end of its output when it fails or takes too long; none of its processes is left running.
    """
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    watch = _Watch(process.pid)
    streams = [_Reader(stream, begun) for stream in (process.stdout, process.stderr) if stream is not None]
    for thread in (watch, *streams):
        thread.start()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(command[:4])} ... did not end within {timeout_s:.0f} s") from None
    finally:
        watch.done.set()
        _end(process)
    wall_s = time.perf_counter() - begun
    for thread in (watch, *streams):
        thread.join(20)
    lines = sorted(line for stream in streams for line in stream.lines)
    if process.returncode:
        output = "\n".join(line for _, line in lines[-40:])
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {process.returncode}:\n{output}")
    output = "".join(f"{line}\n" for _, line in streams[0].lines)
    return Finished(wall_s, watch.tree, watch.resident, watch.own, watch.worker, lines, output, watch.cpu_s())


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt the process, so that it ends its children, and kill what remains."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


class _Reader(threading.Thread):
    def __init__(self, stream: TextIO, begun: float) -> None:
        super().__init__(daemon=True)
        self.lines: list[tuple[float, str]] = []
        self._stream, self._begun = stream, begun

    def run(self) -> None:
        for line in self._stream:
            self.lines.append((time.perf_counter() - self._begun, line.rstrip("\n")))


class _Watch(threading.Thread):
    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.tree = self.resident = self.own = self.worker = 0
        self._root = root
        self._cpu: dict[int, float] = {}
        self._commands: dict[int, str] = {}

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds of each process by its command line and id."""
        return {f"{self._commands.get(pid, '')} {pid}": taken for pid, taken in self._cpu.items()}

    def run(self) -> None:
        looks = 0
        while not self.done.wait(_EVERY_S):
            resident, cpu = _resident(self._root)
            self._cpu |= cpu
            self._commands |= {pid: command for pid in cpu if (command := _command(pid))}
            self.resident = max(self.resident, sum(resident.values()))
            if looks % _TREE_EVERY == 0:
                self.tree = max(self.tree, sum(_proportional(pid, size) for pid, size in resident.items()))
            looks += 1
            self.own = max(self.own, resident.get(self._root, 0))
            workers = [size for pid, size in resident.items() if _command(pid).startswith("ray::")]
            self.worker = max(self.worker, *workers, 0)


def _resident(root: int) -> tuple[dict[int, int], dict[int, float]]:
    """Return the resident bytes, and the CPU seconds, of a process and each of its descendants."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    taken: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:  # fields after the name, which may hold anything: state, ppid, ..., utime the 14th of all, rss the 24th
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        resident[int(entry.name)] = int(fields[21]) * _PAGE
        taken[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        found[pid] = resident.get(pid, 0)
        waiting.extend(child for child, parent in parents.items() if parent == pid)
    return found, {pid: taken[pid] for pid in found if pid in taken}


def _proportional(pid: int, resident: int) -> int:
    """Return the proportional set size of a process in bytes, or its resident size if it has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return resident
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), resident)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""

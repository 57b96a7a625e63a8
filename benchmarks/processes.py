"""Whole processes: how long one takes with everything it starts, and how much memory all of it holds at the worst moment."""

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

from benchmarks.harness import ROOT

_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Finished:
    """One process that ended well.

    Attributes:
        wall_s: from its start to its end.
        peak_bytes: the largest sum of resident memory over it and its descendants, looked at five times a second. Pages
            that processes share count once in each.
        output: standard output.
    """

    wall_s: float
    peak_bytes: int
    output: str


def run(command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command from the project's root, offline.

    Raises: SystemExit with the end of what it said, when it fails or takes too long; nothing of it is left running.
    """
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    watch = _Watch(process.pid)
    watch.start()
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(command[:4])} ... did not end within {timeout_s:.0f} s") from None
    finally:
        watch.done.set()
        _end(process)
    wall_s = time.perf_counter() - begun
    watch.join()
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command[:4])} ... ended with {process.returncode}:\n{output[-1000:]}{errors[-3000:]}"
        )
    return Finished(wall_s, watch.peak_bytes, output)


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt what still runs, so that it takes its own children down; kill what will not."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)


class _Watch(threading.Thread):
    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.peak_bytes = 0
        self._root = root

    def run(self) -> None:
        while not self.done.wait(_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, tree_bytes(self._root))


def tree_bytes(root: int) -> int:
    """Resident bytes of a process and all its descendants, now."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:  # fields after the name, which may hold anything: state, ppid, ..., rss the 24th of all
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        resident[int(entry.name)] = int(fields[21]) * _PAGE
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += resident.get(pid, 0)
        waiting.extend(child for child, parent in parents.items() if parent == pid)
    return total

"""Functions that start jobs, watch their commits and kill their processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.corpus import ROOT

_POLL_S = 0.05
_ZOMBIES_MAY_WRITE_S = 1.0


@contextmanager
def started(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; kill the remaining processes of that session at the end."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            _kill(pid)
        process.wait(30)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120.0
) -> None:
    """Poll until the condition holds; fails when the process ends first or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        ended = process.poll()
        assert ended is None, f"ended with status {ended} before its time\n{log.read_text()}"
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain\n{log.read_text()}"
        time.sleep(_POLL_S)


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until the condition holds; fails when time runs out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(_POLL_S)


def kill_hard(process: subprocess.Popen[bytes]) -> None:
    """Kill the driver with SIGKILL, as the kernel does, and a moment later the processes that it leaves."""
    left = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    time.sleep(_ZOMBIES_MAY_WRITE_S)
    for pid in left:
        _kill(pid)


def descendants(root: int) -> list[int]:
    """Return the process ids below `root`, from /proc, and of the session it leads, which outlive `root`, as Ray's head does."""
    above: dict[int, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found = re.search(r"\) \S (\d+) \d+ (\d+)", _read(entry / "stat"))
            if found:
                above[int(entry.name)] = {int(found.group(1)), int(found.group(2))}
    below = {root}
    while more := {pid for pid, parents in above.items() if parents & below} - below:
        below |= more
    return sorted(below - {root})


def victims(root: int, role: str) -> list[int]:
    """Return the descendants of `root` whose command line names the role, such as `Recognise`."""
    return [
        pid
        for pid in descendants(root)
        if role in _read(Path(f"/proc/{pid}/cmdline")) and "ray::" in _read(Path(f"/proc/{pid}/cmdline"))
    ]


def kill_role(root: int, role: str) -> str | None:
    """Kill one process of a role with SIGKILL. Returns: its command line, or None when there is no such process."""
    for pid in victims(root, role):
        name = _read(Path(f"/proc/{pid}/cmdline")).strip("\0 ")
        if _kill(pid):
            return name
    return None


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""

"""Ctrl-C while a command starts: one line and status 130, at whatever moment it comes."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.corpus import ROOT

SCRIPT = "import sys\nfrom jobs.__main__ import main\nsys.exit(main())\n"
"""The installed command, as pip writes it."""


def starts(way: str, folder: Path) -> list[str]:
    """Return the words that start `verify` on a folder that does not exist."""
    if way == "speech-emotion":
        script = folder / "speech-emotion"
        script.write_text(SCRIPT)
        return [sys.executable, str(script), "verify", str(folder / "none")]
    return [sys.executable, "-m", way, *(["verify"] if way == "jobs" else []), str(folder / "none")]


@pytest.mark.parametrize("way", ["speech-emotion", "jobs", "jobs.verify"])
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_start_is_one_line(way: str, seed: int, tmp_path: Path) -> None:
    """Fails if Ctrl-C during the imports of a command prints a traceback, or ends with a status other than 130.

    The moment is a number of imports after the first of our own, so that it does not depend on the machine's speed: Python
    prints a line for each, into a pipe that holds a few dozen of them and then blocks.
    """
    imports = random.Random(seed).choice([1, 20, 60, 120, 200])
    with subprocess.Popen(
        starts(way, tmp_path),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        seen = 0
        while seen < imports:
            line = process.stderr.readline()
            assert line, "the command ended before its imports did"
            seen += bool(seen) or line.split(b"|")[-1].strip() == b"jobs"
        process.send_signal(signal.SIGINT)
        messages = [line for line in process.stderr.read().decode().splitlines() if not line.startswith("import time:")]
        assert process.wait(60) == 130, messages
        assert list(filter(None, messages)) == ["Interrupted before the command began. Nothing was changed."]


def test_other_programs_keep_their_handler() -> None:
    """Fails if importing the package in a program of one's own changes what Ctrl-C does there."""
    code = "import signal, jobs.parser; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"

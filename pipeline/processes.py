"""The environment and signal mask of child processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def search_path() -> str:
    """A PYTHONPATH by which a child finds the modules that this process finds, wherever either was started."""
    root = Path(__file__).parents[1]
    return os.pathsep.join(dict.fromkeys([str(root), *(str(Path(entry).absolute()) for entry in sys.path)]))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start children inside the block that Ctrl-C does not reach, although they are in the terminal's process group.

    A child inherits the signal mask, so not even its first imports print a KeyboardInterrupt. A signal that arrives
    meanwhile is delivered to this process when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

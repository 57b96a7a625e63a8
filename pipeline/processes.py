"""The environment and signal mask of child processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def search_path() -> str:
    """Return a PYTHONPATH with which a child process finds the same modules, whatever its working directory."""
    root = Path(__file__).parents[1]
    return os.pathsep.join(dict.fromkeys([str(root), *(str(Path(entry).absolute()) for entry in sys.path)]))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT, so that Ctrl-C does not reach children started in the block.

    Such children share the terminal's process group, but inherit the signal mask; not even their first imports can
    raise a KeyboardInterrupt. A signal that arrives meanwhile is delivered to this process when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

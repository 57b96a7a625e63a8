"""Ctrl-C while a command starts: one line and exit status 130 instead of the traceback of an import.

Importing the package installs the handler, in processes that Python started for one of its commands and nowhere else. A
command removes it with `begin`, before its first effect. Ctrl-C then raises KeyboardInterrupt, as usual.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

CONSOLE_SCRIPT = "speech-emotion"
INTERRUPTED = 130
"""Exit status of an interrupted command: 128 and the number of SIGINT, as in shells."""


def watch_start() -> None:
    """Install the handler if this process runs a command, unless SIGINT is ignored or handled otherwise."""
    # `python -m` sets the first argument to -m while it imports the package of the module
    is_command = sys.argv[:1] == ["-m"] or is_console_script()
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def is_console_script() -> bool:
    """Return whether the process was started as the installed command."""
    return bool(sys.argv) and sys.argv[0].rpartition("/")[2] == CONSOLE_SCRIPT


def begin() -> None:
    """Remove the handler: from here on, Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """End the process at once: an exception inside an import may be caught, replaced or printed."""
    os.write(2, b"\nInterrupted before the command began. Nothing was changed.\n")
    os._exit(INTERRUPTED)

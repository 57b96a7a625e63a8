"""Print a completion script for the shell.

    speech-emotion completion bash > ~/.local/share/bash-completion/completions/speech-emotion

Exit status: 0 printed; 2 the command line is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from jobs.__main__ import COMMANDS
from jobs.interrupts import CONSOLE_SCRIPT
from jobs.parser import Parser, run_guarded
from jobs.printer import Printer

SHELLS = ("bash", "zsh", "tcsh")


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "completion",
        usage=f"%(prog)s {{{','.join(SHELLS)}}}",
        description=f"Print a script that completes the commands and options of {CONSOLE_SCRIPT}.",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("completion", lambda printer: _complete(flags.shell, printer), json=flags.json)


def _complete(shell: str, printer: Printer) -> int:
    # imported late: no other command needs it
    import shtab

    script = shtab.complete(all_command_lines(), shell=shell)
    printer.line(script)
    printer.document({"shell": shell, "script": script})
    return 0


def all_command_lines() -> argparse.ArgumentParser:
    """Return a parser with the command lines of all jobs."""
    whole = argparse.ArgumentParser(prog=CONSOLE_SCRIPT)
    commands = whole.add_subparsers()
    for name, about in COMMANDS.items():
        made = importlib.import_module(f"jobs.{name}").command_line()
        made.prog = f"{CONSOLE_SCRIPT} {name.replace('_', '-')}"
        added = commands.add_parser(
            name.replace("_", "-"), help=about, parents=[made], add_help=False, conflict_handler="resolve"
        )
        added.description = made.description
    return whole


if __name__ == "__main__":
    sys.exit(main())

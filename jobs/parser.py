"""Argument parser and error handling shared by all jobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs import interrupts
from jobs.interrupts import CONSOLE_SCRIPT, INTERRUPTED
from jobs.printer import Printer
from pipeline import __version__
from pipeline.errors import ConfigError, JobError, did_you_mean
from pipeline.redaction import redacted


def program(command: str) -> str:
    """Return a command as the user started it, for help texts and messages."""
    if interrupts.is_console_script():
        return f"{CONSOLE_SCRIPT} {command.replace('_', '-')}"
    return f"python -m jobs.{command}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=110)


class Parser(argparse.ArgumentParser):
    """Argument parser of one job, with the options of every job. For an unknown option it suggests the nearest known one.

    Args:
        command: the job's name, as in `speech-emotion annotate` and `python -m jobs.annotate`.
        json: help text of `--json`.
        options: those of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        command: str,
        *,
        json: str = "print the result as one JSON document on standard output, and no text",
        **options: Any,  # noqa: ANN401 - argparse's own
    ) -> None:
        usual = {"allow_abbrev": False, "formatter_class": _formatter}
        super().__init__(prog=program(command), **{**usual, **options})
        self.add_argument("--version", action="version", version=__version__)
        self.add_argument("--json", action="store_true", help=json)

    def parse_all(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse the arguments, or exit with status 2."""
        parsed, unknown = self.parse_known_args(arguments)
        for word in unknown:
            options = [option for action in self._actions for option in action.option_strings]
            name = word.partition("=")[0]
            self.error(
                f"unknown option {name!r}{did_you_mean(name, options)}"
                if word.startswith("-")
                else f"what is {word!r}?"
            )
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print a one-line message instead of the whole usage, and exit with status 2."""
        self.exit(2, f"{self.prog}: {redacted(message)}\nSee {self.prog} --help.\n")


def run_guarded(
    job: str, command: Callable[[Printer], int], *, json: bool, afterwards: str = "", failed: int = 1
) -> int:
    """Run a command that can be repeated safely, and print a short message for each known error.

    Args:
        command: receives the printer of its result, and returns the exit status.
        json: whether the result is printed as JSON.
        afterwards: a sentence about the state after a failure or an interrupt.
        failed: exit status when a store or a step fails.
    Returns: its status; 2 for an error of the caller, `failed` for other failures, 130 when interrupted.
    """
    printer = Printer(json=json)
    try:
        interrupts.begin()
        with printer.redirected():
            return command(printer)
    except ConfigError as error:
        print(f"{program(job)}: {error}", file=sys.stderr)
        return 2
    except (JobError, OSError) as error:
        print(f"{program(job)}: {redacted(str(error))}\n{afterwards}".rstrip(), file=sys.stderr)
        return failed
    except KeyboardInterrupt:
        print(f"\nInterrupted. {afterwards}".rstrip(), file=sys.stderr)
        return INTERRUPTED


def whole_number(text: str) -> int:
    """Parse the value of an option that counts. Raises: ArgumentTypeError for anything but digits."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)

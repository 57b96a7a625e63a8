"""Argument parser and error handling shared by all jobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline import __version__
from pipeline.errors import ConfigError, JobError, did_you_mean
from pipeline.redaction import redacted

CONSOLE_SCRIPT = "speech-emotion"


def program(command: str) -> str:
    """Return a command as the user started it, for help texts and messages."""
    installed = Path(sys.argv[0]).name == CONSOLE_SCRIPT
    return f"{CONSOLE_SCRIPT} {command.replace('_', '-')}" if installed else f"python -m jobs.{command}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=110)


class Parser(argparse.ArgumentParser):
    """Argument parser of one job. For an unknown option it suggests the nearest known one.

    Args:
        command: the job's name, as in `speech-emotion annotate` and `python -m jobs.annotate`.
        options: those of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        usual = {"allow_abbrev": False, "formatter_class": _formatter}
        super().__init__(prog=program(command), **{**usual, **options})
        self.add_argument("--version", action="version", version=__version__)

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


def run_guarded(job: str, command: Callable[[], int], *, afterwards: str = "") -> int:
    """Run a command that can be repeated safely, and print a one-line message for each known error.

    Args:
        afterwards: a sentence about the state after a failure or an interrupt.
    Returns: its status; 2 for an error of the caller, 1 for other failures, 130 when interrupted.
    """
    try:
        return command()
    except ConfigError as error:
        print(f"{program(job)}: {error}", file=sys.stderr)
        return 2
    except (JobError, OSError) as error:
        print(f"{program(job)}: {redacted(str(error))}\n{afterwards}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {afterwards}".rstrip(), file=sys.stderr)
        return 130

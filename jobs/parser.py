"""What the command lines of all jobs share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipeline.errors import ConfigError, JobError, did_you_mean
from pipeline.redaction import redacted


class Parser(argparse.ArgumentParser):
    """Names the nearest known option for one it does not know."""

    def parse_all(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse, or end with status 2."""
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
        """One clear line instead of the whole usage."""
        self.exit(2, f"{self.prog}: {redacted(message)}\nSee {self.prog} --help.\n")


def run_guarded(name: str, command: Callable[[], int], *, afterwards: str = "") -> int:
    """Run a command that can simply be started again; says in one line what was in its way.

    Args:
        afterwards: a sentence on how things stand once it has failed or was interrupted.
    Returns: its status; 2 for what the caller has to mend, 1 for what failed, 130 when interrupted.
    """
    try:
        return command()
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (JobError, OSError) as error:
        print(f"{name}: {redacted(str(error))}\n{afterwards}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {afterwards}".rstrip(), file=sys.stderr)
        return 130


def add_named_models(group: argparse._ArgumentGroup) -> None:
    """The options of `config.MODEL_OPTIONS`."""
    group.add_argument("--fusion-model", nargs="+", action="extend", metavar="[LANG=]X",
                       help="default: the published one for language and mode; in mode text the text classifier")  # fmt: skip
    group.add_argument(
        "--sentence-encoder",
        nargs="+",
        action="extend",
        metavar="[LANG=]X",
        help="default: the published BERT of the language",
    )
    group.add_argument(
        "--asr-model",
        nargs="+",
        action="extend",
        metavar="[LANG=]X",
        help="faster-whisper model (default: large-v3-turbo)",
    )

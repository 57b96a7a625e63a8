"""The command-line parser all jobs share, and the options that name models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pipeline.errors import did_you_mean


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
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


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

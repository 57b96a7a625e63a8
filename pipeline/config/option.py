"""Command-line metadata of configuration fields."""

from __future__ import annotations

from dataclasses import dataclass

DATA, MODELS, MACHINE, RUN = "data", "models", "machine", "run"
"""Groups of options in help texts."""


@dataclass(frozen=True, slots=True)
class Option:
    """Presentation of a field on the command line, in `--help` and in docs/commands.md.

    Attributes:
        group: heading in the help text.
        help: description; the default value is appended unless the text states it.
        metavar: placeholder for the value; None where the choices or the type suffice.
    """

    group: str
    help: str
    metavar: str | None = None

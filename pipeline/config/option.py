"""How a field of a configuration appears on a command line."""

from __future__ import annotations

from dataclasses import dataclass

DATA, MODELS, MACHINE, RUN = "data", "models", "machine", "run"
"""Groups of options in help texts."""


@dataclass(frozen=True, slots=True)
class Option:
    """How a field appears on a command line, in `--help` and in docs/commands.md.

    Attributes:
        group: heading in the help text.
        help: what it does; the default is appended unless the text names it.
        metavar: placeholder for the value, where the choices or the type do not say enough.
    """

    group: str
    help: str
    metavar: str | None = None

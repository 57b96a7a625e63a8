"""What every report is made of, and how it becomes one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.redaction import redacted

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer.

    Attributes:
        name: of the section, its table and its query; an identifier on the page.
        columns, rows: the table, with the numbers that are drawn, as they were asked.
        query: the SQL that gave them.
        note: a sentence on what is shown.
        svg, alt: the figure, and what it shows in words.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    query: str
    note: str = ""
    svg: Markup | None = None
    alt: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A report: what it is about, the facts that stand first, and the sections."""

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a query."""
    found = connection.sql(query)
    return found.columns, found.fetchall()


def shown(value: Any) -> str:  # noqa: ANN401 - whatever a column holds
    """Format a value for a table: numbers to six digits, URLs in text without their queries."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if math.isfinite(value) else "–"
    return redacted(str(value))


def share(part: float, whole: float) -> str:
    """As percent, in words."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def listed(names: Sequence[str], values: Sequence[str], most: int = 12) -> str:
    """`joy 40 %, fear 20 %` for a text alternative."""
    words = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
    return ", ".join(words[:most]) + (f", and {len(words) - most} more, in the table" if len(words) > most else "")


def _numeric_columns(rows: Sequence[Sequence[Any]]) -> list[int]:
    """Which columns hold numbers, and nulls besides."""
    return [
        number
        for number, column in enumerate(zip(*rows, strict=True))
        if {type(value) for value in column} - {type(None)} <= {int, float}
        and any(value is not None for value in column)
    ]


def render(page: Page) -> bytes:
    """The whole file. Everything that came from data is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    environment.filters["numeric_columns"] = _numeric_columns
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page).encode("utf-8", errors="replace")

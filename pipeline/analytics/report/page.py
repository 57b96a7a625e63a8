"""Structure of reports, and their rendering as one HTML file."""

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
    """One section: a table, its query and optionally a figure.

    Attributes:
        name: identifier on the page, of the section, its table and its query.
        columns, rows: the table, as returned by the query, with the numbers of the figure.
        query: the SQL that returned the table.
        note: a sentence about the content.
        svg, alt: the figure, and its description in words.
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
    """A report: title, main facts, sections, warnings and details."""

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run a query and return its column names and rows."""
    result = connection.sql(query)
    return result.columns, result.fetchall()


def formatted(value: Any) -> str:  # noqa: ANN401 - whatever a column holds
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
    """Format a share as percent."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def listed(names: Sequence[str], values: Sequence[str], most: int = 12) -> str:
    """Return a list such as `joy 40 %, fear 20 %`, for the text alternative of a figure."""
    words = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
    return ", ".join(words[:most]) + (f", and {len(words) - most} more, in the table" if len(words) > most else "")


def _numeric_columns(rows: Sequence[Sequence[Any]]) -> list[int]:
    """Return the indices of the columns that contain only numbers and nulls."""
    return [
        number
        for number, column in enumerate(zip(*rows, strict=True))
        if {type(value) for value in column} - {type(None)} <= {int, float}
        and any(value is not None for value in column)
    ]


def render(page: Page) -> bytes:
    """Return the HTML file. All values from data are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["formatted"] = formatted
    environment.filters["numeric_columns"] = _numeric_columns
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page).encode("utf-8", errors="replace")

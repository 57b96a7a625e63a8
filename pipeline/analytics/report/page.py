"""Structure of reports, and their rendering as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.redaction import redacted

if TYPE_CHECKING:
    import duckdb

    from pipeline.analytics.report.behind import Marks


@dataclass(frozen=True, slots=True)
class Section:
    """One section: a table, its query and optionally a figure.

    Attributes:
        name: identifier on the page, of the section, its table and its query.
        columns, rows: the table, as returned by the query, with the numbers of the figure.
        query: the SQL that returned the table.
        note: a sentence about the content.
        svg, alt: the figure, and its description in words.
        cells: columns of the table whose cells, instead of its rows, are the marks of the figure.
        marks: the rows that the marks of the figure count.
        members: for a list of rows, the places on the page of the marks that each row is behind, separated by spaces.
        long: the figure is as wide as the page, and is scrolled sideways on a phone.
        opened: the table is open at first.
        players: for each row the address of its audio, or None.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    query: str
    note: str = ""
    svg: Markup | None = None
    alt: str = ""
    cells: range = range(0)
    marks: Marks | None = None
    members: Sequence[str] | None = None
    long: bool = False
    opened: bool = False
    players: Sequence[str | None] | None = None

    def place(self, row: int, column: int | None = None) -> str:
        """Return the attributes of a row, or a cell, of the table: its identifier if a mark of the figure links to it."""
        if not self.svg or (column is None) == bool(self.cells) or (column is not None and column not in self.cells):
            return ""
        name = f"r{row}" if column is None else f"r{row}-c{column}"
        count = self.marks.counts.get(name) if self.marks else None
        behind = Markup(' data-behind="{}"').format(count) if count else ""
        return Markup(' id="{}-{}"{}').format(self.name, name, behind)


@dataclass(frozen=True, slots=True)
class Page:
    """A report: title, main facts, sections, warnings and details.

    Attributes:
        media: sources of audio in the content security policy; empty if the page has none.
        digits: number of decimal places in tables; 0 for six significant digits.
    """

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    digits: int = 0
    media: str = ""


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run a query and return its column names and rows."""
    result = connection.sql(query)
    return result.columns, result.fetchall()


def formatted(value: Any, digits: int = 0) -> str:  # noqa: ANN401 - whatever a column holds
    """Format a value for a table: numbers to six digits or to `digits` decimal places, URLs in text without their queries."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        # a small number, such as that of a test, would be 0.000
        return (
            f"{value:,.{digits}f}"
            if digits and (not value or abs(value) >= 10**-digits)
            else f"{value:,.{digits or 6}g}"
        )
    return redacted(str(value))


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


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
    template = environment.from_string(_file("page.html"))
    script = Markup(_file("explore.js"))
    # the browser runs this script alone: the policy names its hash
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = template.render(page=page, wide=_wide(page), script=script, script_hash=f"sha256-{digest}")
    return content.encode("utf-8", errors="replace")


def _wide(page: Page) -> set[str]:
    """Return the names of the sections as wide as the page: those without a figure, and a figure left over in its row."""
    wide = {section.name for section in page.sections if section.long or not section.svg}
    for has_figure, run in itertools.groupby(page.sections, lambda section: section.name not in wide):
        *_, last = sections = list(run)
        if has_figure and len(sections) % 2:
            wide.add(last.name)
    return wide


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

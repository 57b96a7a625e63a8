"""Sections of a run's report on what models of any kind predict: labels without an emotion, and dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.analytics.report import plots
from pipeline.analytics.report.page import Section, ask, formatted, listed, share
from pipeline.schema import DIMENSIONS, UNMAPPED

if TYPE_CHECKING:
    import duckdb

_BINS = 20
_LABELS = 40

LABELS = f"""SELECT label, coalesce(mode(emotion), '(none)') AS emotion, count(*) AS utterances,
    count(*) / sum(count(*)) OVER () AS share, avg(confidence) AS confidence,
    count(*) FILTER (labels IS NOT NULL AND len(labels) > 1) AS with_other_labels
FROM utterances WHERE label IS NOT NULL GROUP BY label ORDER BY utterances DESC, label LIMIT {_LABELS}"""

_SEVERAL = f"SELECT bool_or(emotion_null_reason = '{UNMAPPED}' OR labels IS NOT NULL) FROM utterances"


def dimension_query(name: str) -> str:
    """Return the query for the histogram of one dimension; predictions beyond 0 and 1 are in the outer bins."""
    step = f"greatest(least(floor({name}::DOUBLE * {_BINS}), {_BINS - 1}), 0)"
    return f"""SELECT {step} / {_BINS} AS {name}_from, count(*) AS utterances, min({name}) AS least, max({name}) AS largest
FROM utterances WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY 1"""


def output_sections(connection: duckdb.DuckDBPyConnection) -> Iterator[Section]:
    """Yield a section on labels, where one has no emotion or a row has several, and one for each dimension."""
    _, ((several,),) = ask(connection, _SEVERAL)
    if several:
        names, rows = ask(connection, LABELS)
        labels = [str(row[0]) for row in rows]
        svg = plots.bars(labels, [100 * row[3] for row in rows], label="% of labels", form="{:.1f}", name="label")
        alt = listed(labels, [share(row[3], 1) for row in rows])
        note = "The model's own labels, and the emotion of each."
        yield Section("label", "Labels", names, rows, LABELS, note, svg, alt)
    for name in DIMENSIONS:
        query = dimension_query(name)
        names, rows = ask(connection, query)
        if rows:
            yield _dimension(name, names, rows, query)


def _dimension(name: str, names: list[str], rows: list[tuple[float, int, float, float]], query: str) -> Section:
    svg = plots.columns(
        [row[0] for row in rows],
        1 / _BINS,
        [row[1] for row in rows],
        x=name,
        y="utterances",
        bounds=(0, 1),
        name=name,
    )
    least, largest = min(row[2] for row in rows), max(row[3] for row in rows)
    alt = f"predictions from {formatted(round(least, 3))} to {formatted(round(largest, 3))}"
    return Section(name, name.capitalize(), names, rows, query, f"{alt.capitalize()}.", svg, alt)

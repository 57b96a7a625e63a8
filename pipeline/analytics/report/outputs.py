"""Sections of a run's report on what models of any kind predict: labels without an emotion, dimensions, further models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.analytics.report import plots
from pipeline.analytics.report.behind import rows_marks
from pipeline.analytics.report.page import Section, ask, formatted, listed, share
from pipeline.config.further import BY_MODEL
from pipeline.schema import DIMENSIONS, UNMAPPED

if TYPE_CHECKING:
    import duckdb

_BINS = 20
_LABELS = 40

_LABELS_QUERY = f"""SELECT label, coalesce(mode(emotion), '(none)') AS emotion, count(*) AS utterances,
    count(*) / sum(count(*)) OVER () AS share, avg(confidence) AS confidence,
    count(*) FILTER (labels IS NOT NULL AND len(labels) > 1) AS with_other_labels
FROM SOURCE WHERE label IS NOT NULL GROUP BY label ORDER BY utterances DESC, label LIMIT {_LABELS}"""

_SEVERAL = f"SELECT bool_or(emotion_null_reason = '{UNMAPPED}' OR labels IS NOT NULL) FROM SOURCE"

_EMOTIONS = """SELECT coalesce(emotion, '(' || emotion_null_reason || ')') AS emotion, count(*) AS utterances,
    count(*) / sum(count(*)) OVER () AS share, avg(confidence) AS confidence,
    count(*) FILTER (emotion IS NOT NULL AND main_emotion IS NOT NULL) AS compared,
    count(*) FILTER (emotion = main_emotion) AS same_as_main
FROM (SELECT unnest(COLUMN), emotion AS main_emotion FROM utterances) GROUP BY ALL ORDER BY utterances DESC, emotion"""


def dimension_query(name: str, source: str = "utterances") -> str:
    """Return the query for the histogram of one dimension; predictions beyond 0 and 1 are in the outer bins."""
    return f"""SELECT {_bin(name)} AS {name}_from, count(*) AS utterances, min({name}) AS least, max({name}) AS largest
FROM {source} WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY 1"""


def _bin(column: str) -> str:
    return f"greatest(least(floor({column}::DOUBLE * {_BINS}), {_BINS - 1}), 0) / {_BINS}"


def output_sections(
    connection: duckdb.DuckDBPyConnection, source: str = "utterances", model: str = ""
) -> Iterator[Section]:
    """Yield a section on labels, where one has no emotion or a row has several, and one for each dimension.

    Args:
        source: SQL for the table with the results.
        model: name of the further model that they are of; empty for the main one.
    """
    prefix, title, column = (f"{model}-", f"{model}: ", f"{BY_MODEL}.{model}.") if model else ("", "", "")
    _, ((several,),) = ask(connection, _SEVERAL.replace("SOURCE", source))
    if several:
        query = _LABELS_QUERY.replace("SOURCE", source)
        names, rows = ask(connection, query)
        labels = [str(row[0]) for row in rows]
        percent = [100 * row[3] for row in rows]
        svg = plots.bars(labels, percent, label="% of labels", form="{:.1f}", name=f"{prefix}label")
        alt = listed(labels, [share(row[3], 1) for row in rows])
        note = "The model's own labels, and the emotion of each."
        marks = rows_marks(
            "utterances", f"[{column}label]", labels, [row[2] for row in rows], f"{column}label IS NOT NULL"
        )
        shown = f"{title}labels" if model else "Labels"
        yield Section(f"{prefix}label", shown, names, rows, query, note, svg, alt, marks=marks)
    for name in DIMENSIONS:
        query = dimension_query(name, source)
        names, rows = ask(connection, query)
        if rows:
            shown = f"{title}{name}" if model else name.capitalize()
            marks = rows_marks(
                "utterances",
                f"[{_bin(column + name)}]",
                [row[0] for row in rows],
                [row[1] for row in rows],
                f"{column}{name} IS NOT NULL",
            )
            yield replace(_dimension(f"{prefix}{name}", shown, names, rows, query), marks=marks)


def further_sections(connection: duckdb.DuckDBPyConnection, models: Sequence[str]) -> Iterator[Section]:
    """Yield the sections of each further model: its emotions beside those of the main model, labels and dimensions."""
    for model in models:
        column = f"{BY_MODEL}.{model}"
        query = _EMOTIONS.replace("COLUMN", column)
        names, rows = ask(connection, query)
        compared, same = (sum(row[place] for row in rows) for place in (4, 5))
        note = f"Further model {model}. " + (
            f"It gives the emotion of the main model to {share(same, compared)} of the {formatted(compared)} utterances to "
            "which both give one."
            if compared
            else "It and the main model give an emotion to no utterance in common."
        )
        emotions = [row[0] for row in rows]
        percent = [100 * row[2] for row in rows]
        name = f"{model}-emotion"
        svg = plots.bars(emotions, percent, label="% of utterances", form="{:.1f}", name=name) if rows else None
        alt = listed(emotions, [share(row[2], 1) for row in rows])
        key = f"[coalesce({column}.emotion, '(' || {column}.emotion_null_reason || ')')]"
        marks = rows_marks("utterances", key, emotions, [row[1] for row in rows])
        yield Section(name, f"{model}: emotions", names, rows, query, note, svg, alt, marks=marks)
        yield from output_sections(connection, f"(SELECT unnest({column}) FROM utterances)", model)


def _dimension(
    name: str, title: str, columns: list[str], rows: list[tuple[float, int, float, float]], query: str
) -> Section:
    svg = plots.columns(
        [row[0] for row in rows],
        1 / _BINS,
        [row[1] for row in rows],
        x=title,
        y="utterances",
        bounds=(0, 1),
        name=name,
    )
    least, largest = min(row[2] for row in rows), max(row[3] for row in rows)
    alt = f"predictions from {formatted(round(least, 3))} to {formatted(round(largest, 3))}"
    return Section(name, title, columns, rows, query, f"{alt.capitalize()}.", svg, alt)

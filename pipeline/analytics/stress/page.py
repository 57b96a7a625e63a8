"""Report of a stress test: a table of all conditions, and for each condition its definition, figure and table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.analytics.report import plots
from pipeline.analytics.report.behind import Listing, Marks, listing
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed, literal
from pipeline.analytics.stress.conditions import CLEAN, CONDITIONS
from pipeline.analytics.stress.outcome import Outcome, place_of, title_of
from pipeline.analytics.stress.results import DIMENSIONS, FLIPS, UAR
from pipeline.dataset.reader import asking

if TYPE_CHECKING:
    import duckdb

OVERVIEW = """SELECT condition, CASE WHEN level IS NULL THEN '' ELSE printf('%g %s', level, unit) END AS level,
    {columns},
    {clips} AS clips, any_value(rejected) AS rejected
FROM results GROUP BY condition, level, unit, severity
ORDER BY min(place)"""
TESTED = """(SELECT *, concat_ws(' ', condition, level, recording_id) AS place FROM predictions
    WHERE condition <> 'clean')"""
DETAIL = """SELECT level, unit, metric, clips, rejected, no_prediction, clean, figure, loss, low, high
FROM results WHERE condition = '{condition}' ORDER BY severity, metric"""


def stress_page(outcome: Outcome) -> Page:
    """Return the report of a test."""
    document = outcome.document
    results: Sequence[Mapping[str, Any]] = document["results"]
    metrics = list(dict.fromkeys(row["metric"] for row in results))
    drawn = next((metric for metric in metrics if metric != FLIPS), FLIPS)
    table = outcome.table.append_column("place", [list(range(len(outcome.table)))])
    with asking(results=table, predictions=outcome.predictions) as connection:
        sections = [_overview(connection, metrics, drawn), *_conditions(connection, results, drawn, document["clips"])]
        clips = listing(connection, _clips(outcome), sections)
    return Page(
        title=f"Stress test · {', '.join(document['models'])}",
        subtitle=f"{document['folder']}, mode {document['mode']}, labels in column {document['labels'] or '(none)'}",
        facts=_facts(document, results, drawn),
        sections=[*sections, *([clips] if clips else [])],
        warnings=document["warnings"],
        details={
            "version": document["version"],
            "models": ", ".join(document["models"]),
            "seed": str(document["seed"]),
            "intervals": f"{document['interval']}, {document['resamples']:,} resamples by {document['resample_by']}",
        },
    )


def _clips(outcome: Outcome) -> Listing:
    """Return the list of clips under each condition, those with another label first."""
    dimensions = [name for name in DIMENSIONS if name in outcome.predictions.column_names]
    columns = [
        "recording_id",
        "condition",
        "level",
        "true_label",
        "clean_label",
        "label",
        "flipped",
        "reject_reason",
        *(f"round({name}, 3) AS {name}" for name in dimensions),
    ]
    return Listing(
        name="clips",
        title="Clips",
        source=TESTED,
        identity="place",
        columns=", ".join(columns),
        order="flipped DESC NULLS LAST, condition, level, recording_id",
        noun="clips under a condition",
    )


def _facts(document: Mapping[str, Any], results: Sequence[Mapping[str, Any]], drawn: str) -> dict[str, str]:
    clean = next(row for row in results if row["condition"] == CLEAN and row["metric"] == drawn)
    losses = [row for row in results if row["metric"] == drawn and row["loss"] is not None]
    worst = max(losses, key=lambda row: row["loss"], default=None)
    facts = {"clips": formatted(document["clips"])}
    if drawn != FLIPS:
        facts[f"{title_of(drawn)}, clean"] = _figure(clean["figure"], drawn)
    if document["clean_uar"]:
        facts["UAR by chance"] = _figure(document["clean_uar"]["chance"], UAR)
    if worst is not None and worst["loss"] > 0:
        facts[f"largest loss: {place_of(worst)}"] = _figure(worst["loss"], drawn)
    return facts


def _figure(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if metric.startswith("ccc_") else f"{100 * value:.1f} %"


def _overview(connection: duckdb.DuckDBPyConnection, metrics: Sequence[str], drawn: str) -> Section:
    columns = []
    for metric in metrics:
        rounded = f"round(max({{}}) FILTER (metric = '{metric}'), 4)"
        if metric != FLIPS:
            columns.append(f"{rounded.format('figure')} AS {metric}")
        columns.append(f"{rounded.format('loss')} AS {metric if metric == FLIPS else f'{metric}_loss'}")
    columns += [f"round(max({bound}) FILTER (metric = '{drawn}'), 4) AS {bound}" for bound in ("low", "high")]
    query = OVERVIEW.format(columns=",\n    ".join(columns), clips=f"max(clips) FILTER (metric = '{drawn}')")
    names, rows = ask(connection, query)
    note = (
        "flips is the share of clips whose label changes. A loss is the clean figure minus the figure under the condition, on "
        f"the same clips; below 0 the condition helped. low and high bound the {_cost(drawn)}; with 0 between them "
        "it may be chance."
    )
    return Section("conditions", "All conditions", names, rows, query, note)


def _cost(metric: str) -> str:
    return "flips" if metric == FLIPS else f"loss of {title_of(metric)}"


def _conditions(
    connection: duckdb.DuckDBPyConnection, results: Sequence[Mapping[str, Any]], drawn: str, clips: int
) -> Iterator[Section]:
    losses = [row for row in results if row["metric"] == drawn and row["loss"] is not None]
    for name in dict.fromkeys(row["condition"] for row in results if row["condition"] != CLEAN):
        query = DETAIL.format(condition=name)
        columns, rows = ask(connection, query)
        levels = [row for row in losses if row["condition"] == name]
        places = {row[0]: place for place, row in enumerate(rows) if row[2] == drawn}
        svg = _bars(levels, losses, drawn, places) if levels else None
        alt = listed(list(map(_level, levels)), [_figure(row["loss"], drawn) for row in levels])
        meaning = CONDITIONS[name].meaning
        note = f"{meaning[0].upper()}{meaning[1:]}."
        counts = {each: (f"r{place}", clips) for each, place in places.items()}
        marks = Marks(TESTED, "[level]", counts, f"condition = {literal(name)}")
        yield Section(name, name.replace("_", " "), columns, rows, query, note, svg, alt, marks=marks)


def _level(row: Mapping[str, Any]) -> str:
    return f"{row['level']:g} {row['unit']}"


def _bars(
    levels: Sequence[Mapping[str, Any]], losses: Sequence[Mapping[str, Any]], drawn: str, places: Mapping[float, int]
) -> Markup:
    """Draw the losses of the levels of a condition, on the scale of all conditions.

    Args:
        places: row of the section's table for each level.
    """
    scale, form, unit = (1.0, "{:.3f}", "") if drawn.startswith("ccc_") else (100.0, "{:.1f}", ", points")

    def scaled(rows: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
        return [None if row[name] is None else scale * row[name] for row in rows]

    ends = [end for name in ("loss", "low", "high") for end in scaled(losses, name) if end is not None]
    return plots.losses(
        list(map(_level, levels)),
        [scale * row["loss"] for row in levels],
        scaled(levels, "low"),
        scaled(levels, "high"),
        form=form,
        label=f"{_cost(drawn)}{unit}",
        bounds=(min(0.0, *ends), max(0.0, *ends)),
        places=[places[row["level"]] for row in levels],
        name=levels[0]["condition"],
    )

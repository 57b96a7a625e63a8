"""The report of what `jobs.evaluate --write` wrote: figures with their intervals, confusions, calibration, slices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.analytics.tables import asking
from pipeline.errors import ConfigError
from pipeline.leftovers import reaching
from pipeline.report import plots
from pipeline.report.page import Page, Section, ask, listed, share, shown
from pipeline.roots import without_query
from pipeline.storage import open_store

if TYPE_CHECKING:
    import duckdb

_TABLES = ("metrics", "confusion", "reliability")
_WHOLE = "output = {output} AND slice = 'all'"

FIGURES = f"""SELECT metric, figure, low, high FROM metrics
WHERE {_WHOLE} AND class IS NULL"""
CLASSES = f"""SELECT class, max(figure) FILTER (metric = 'precision') AS precision,
    max(figure) FILTER (metric = 'recall') AS recall, max(figure) FILTER (metric = 'f1') AS f1,
    max(figure) FILTER (metric = 'support')::BIGINT AS support
FROM metrics WHERE {_WHOLE} AND class IS NOT NULL GROUP BY class ORDER BY class"""
CONFUSION = f"""SELECT truth, predicted, count, share FROM confusion
WHERE {_WHOLE} ORDER BY truth, predicted"""
RELIABILITY = f"""SELECT low, high, rows, confidence, accuracy FROM reliability
WHERE {_WHOLE} ORDER BY low"""
SLICES = """SELECT slice, value, any_value(rows) AS rows, max(figure) FILTER (metric = 'accuracy') AS accuracy,
    max(figure) FILTER (metric = 'macro_f1') AS macro_f1, max(figure) FILTER (metric = 'uar') AS uar
FROM metrics WHERE output = {output} AND slice <> 'all' AND class IS NULL
GROUP BY slice, value ORDER BY slice, rows DESC, value"""


def evaluation_page(folder: str) -> Page:
    """The report of a folder. Raises: ConfigError when it holds no evaluation, JobError when a file cannot be read."""
    store = open_store(folder)
    with reaching(store):
        try:
            evaluation = json.loads(store.read("metrics.json"))
            tables = {}
            for name in _TABLES:
                with store.open(f"{name}.parquet") as file:
                    tables[name] = pq.read_table(file)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{without_query(folder)} holds no evaluation; jobs.evaluate --write writes one"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{without_query(folder)}/metrics.json cannot be read: {error}") from error
    outputs = evaluation["outputs"]
    with asking(**tables) as connection:
        several = len(outputs) > 1
        sections = [
            section
            for number, output in enumerate(outputs, 1)
            for section in _of_output(connection, output, number, f" – {shown(output['output'])}" if several else "")
        ]
    first = outputs[0]
    return Page(
        title="Evaluation",
        subtitle=f"{', '.join(without_query(output['output']) for output in outputs)}; "
        f"labels in column {evaluation['labels']}, made {evaluation['made_at']}",
        facts={
            "utterances compared": shown(first["overall"]["rows"]),
            **{name.replace("_", " ").replace("f1", "F1").replace("uar", "UAR"): shown(round(100 * figure["value"], 1)) + " %"
               for name, figure in first["overall"]["metrics"].items()},
            "calibration error": shown(round(100 * first["overall"]["calibration"]["expected_error"], 1)) + " %",
        },
        sections=sections,
        warnings=list(_warnings(evaluation)),
        details={
            "version": evaluation["version"],
            "intervals": f"{evaluation['interval']}, {evaluation['resamples']:,} resamples by {evaluation['resample_by']}",
            **{f"models of {without_query(output['output'])}": ", ".join(output["models"]) for output in outputs},
        },
    )  # fmt: skip


def _warnings(evaluation: Mapping[str, Any]) -> Iterator[str]:
    several = len(evaluation["outputs"]) > 1
    for output in evaluation["outputs"]:
        where = f"{shown(output['output'])}: " if several else ""
        yield from (f"{where}{sentence}" for sentence in output["warnings"])
        for row in output["published"]:
            if not row["same_test_set"]:
                yield (f"{where}The published figures for {row['language']} in mode {row['mode']} are of another test set, and "
                       f"are not compared: {'; '.join(row['why_not'])}.")  # fmt: skip
    for comparison in evaluation["comparisons"]:
        pair = f"{shown(comparison['second'])} against {shown(comparison['first'])}"
        test = comparison["test"]
        yield f"{pair}: on {comparison['rows']:,} shared utterances " + (
            f"{test['only_second_right']:,} are right in it alone, {test['only_first_right']:,} in the other alone "
            f"({test['name']}, p = {test['p_value']:.2g})."
            if test
            else "there is nothing to compare."
        )


def _of_output(
    connection: duckdb.DuckDBPyConnection, output: Mapping[str, Any], number: int, where: str
) -> Iterator[Section]:
    literal = "'" + output["output"].replace("'", "''") + "'"

    def asked(query: str) -> tuple[list[str], list[tuple[Any, ...]], str]:
        query = query.replace("{output}", literal)
        return *ask(connection, query), without_query(query) if "?" in output["output"] else query

    names, rows, query = asked(FIGURES)
    note = "low and high bound the interval that resampling gives, where there is one."
    yield Section(f"figures-{number}", f"Figures{where}", names, rows, query, note)
    names, rows, query = asked(CONFUSION)
    yield _confusion(names, rows, query, f"confusion-{number}", where)
    names, rows, query = asked(RELIABILITY)
    yield _reliability(names, rows, query, f"reliability-{number}", where)
    names, rows, query = asked(CLASSES)
    name = f"classes-{number}"
    classes = [row[0] for row in rows]
    svg = plots.bars(classes, [100 * row[3] for row in rows], label="F1, %", form="{:.1f}", name=name)
    yield Section(
        name, f"F1 by class{where}", names, rows, query, "", svg, listed(classes, [share(row[3], 1) for row in rows])
    )
    names, rows, query = asked(SLICES)
    if rows:
        yield Section(f"slices-{number}", f"Slices{where}", names, rows, query, "Small slices are mostly chance.")


def _confusion(names: list[str], rows: list[tuple[Any, ...]], query: str, name: str, where: str) -> Section:
    classes = sorted({row[0] for row in rows})
    cells = {(row[0], row[1]): row for row in rows}
    counts = [[cells[truth, other][2] for other in classes] for truth in classes]
    shares = [[cells[truth, other][3] for other in classes] for truth in classes]
    svg = plots.confusions(classes, counts, shares, name=name)
    right = [f"{100 * shares[place][place]:.0f} %" for place in range(len(classes))]
    alt = f"recognised as what they are: {listed(classes, right)}"
    note = "Utterances of each true class (rows) by what they were recognised as; a stronger colour is a larger share of the row."
    return Section(name, f"Confusions{where}", names, rows, query, note, svg, alt)


def _reliability(names: list[str], rows: list[tuple[Any, ...]], query: str, name: str, where: str) -> Section:
    svg = plots.reliability([row[3] for row in rows], [row[4] for row in rows], [row[2] for row in rows], name=name)
    alt = listed([f"at confidence {row[3]:.2f}" for row in rows], [f"{100 * row[4]:.0f} % right" for row in rows])
    note = "On the dashed line a confidence is right as often as it says; larger dots stand for more utterances."
    return Section(name, f"Reliability{where}", names, rows, query, note, svg, alt)

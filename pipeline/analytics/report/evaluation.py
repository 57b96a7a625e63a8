"""Report of an evaluation by `jobs.evaluate --write`: metrics with intervals, confusions, calibration, slices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.evaluate.labelled import SMALL
from pipeline.analytics.evaluate.results import Comparison, Evaluation, OutputResult
from pipeline.analytics.evaluate.tables import SCHEMAS
from pipeline.analytics.report import plots
from pipeline.analytics.report.behind import Marks, listing, rows_marks
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed, literal
from pipeline.analytics.report.predictions import prediction_list, texts_of
from pipeline.analytics.report.result import DIGITS, FIGURES, fraction, result_section, title_of
from pipeline.dataset.reader import asking
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store, open_store

if TYPE_CHECKING:
    import duckdb

_TABLES = (
    "metrics", "confusion", "reliability", "abstention", "published", "comparisons", "speakers", "dimensions", "predictions"
)  # fmt: skip
_LATER_TABLES = ("speakers", "dimensions")
"""Tables that evaluations by earlier versions lack."""
_WHOLE = "output = {output} AND slice = 'all'"

CLASSES = f"""SELECT class, max(figure) FILTER (metric = 'precision') AS precision,
    max(figure) FILTER (metric = 'recall') AS recall, max(figure) FILTER (metric = 'f1') AS f1,
    max(figure) FILTER (metric = 'support')::BIGINT AS support, max(low) FILTER (metric = 'f1') AS f1_low,
    max(high) FILTER (metric = 'f1') AS f1_high, max(chance) FILTER (metric = 'f1') AS f1_chance,
    max(majority) FILTER (metric = 'f1') AS f1_majority
FROM metrics WHERE {_WHOLE} AND class IS NOT NULL GROUP BY class ORDER BY class"""
CONFUSION = f"""SELECT truth, predicted, count, share FROM confusion
WHERE {_WHOLE} ORDER BY truth, predicted"""
RELIABILITY = f"""SELECT low, high, rows, confidence, accuracy FROM reliability
WHERE {_WHOLE} ORDER BY low"""
ABSTENTION = """SELECT min_confidence, rows, share, accuracy FROM abstention
WHERE output = {output} ORDER BY min_confidence"""
PUBLISHED = """SELECT language, mode, metric, published, ours, ours - published AS difference FROM published
WHERE output = {output} AND ours IS NOT NULL"""
SPEAKERS = f"""SELECT coalesce(dimension || ' ', '') || metric AS metric, speakers, mean, deviation FROM speakers
WHERE {_WHOLE}"""
DIMENSIONS = f"""SELECT dimension, metric, rows, figure, low, high, chance, majority AS mean_label FROM dimensions
WHERE {_WHOLE}"""
DIMENSION_SLICES = f"""SELECT dimension, slice, value, any_value(rows) AS rows, any_value(rows) < {SMALL} AS small,
    max(figure) FILTER (metric = 'ccc') AS ccc, max(low) FILTER (metric = 'ccc') AS low,
    max(high) FILTER (metric = 'ccc') AS high, max(figure) FILTER (metric = 'pearson') AS pearson,
    max(figure) FILTER (metric = 'rmse') AS rmse, max(majority) FILTER (metric = 'rmse') AS rmse_of_mean_label
FROM dimensions WHERE output = {{output}} AND slice <> 'all' GROUP BY ALL ORDER BY dimension, slice, rows DESC, value"""
COMPARED = """SELECT metric, figure_first, figure_second, difference, low, high, only_first_right, only_second_right, p_value,
    p_value_holm, chance, majority FROM comparisons WHERE first = {first} AND second = {second} AND dimension IS NULL"""
COMPARED_DIMENSIONS = """SELECT dimension, metric, figure_first, figure_second, difference, low, high, chance,
    majority AS mean_label FROM comparisons WHERE first = {first} AND second = {second} AND dimension IS NOT NULL"""
SLICES = f"""SELECT slice, value, any_value(rows) AS rows, any_value(rows) < {SMALL} AS small,
    max(figure) FILTER (metric = 'accuracy') AS accuracy, max(low) FILTER (metric = 'accuracy') AS low,
    max(high) FILTER (metric = 'accuracy') AS high, max(figure) FILTER (metric = 'macro_f1') AS macro_f1,
    max(figure) FILTER (metric = 'uar') AS uar, max(figure) FILTER (metric = 'word_error_rate') AS word_error_rate,
    max(chance) FILTER (metric = 'accuracy') AS accuracy_by_chance,
    max(majority) FILTER (metric = 'accuracy') AS accuracy_of_majority
FROM metrics WHERE output = {{output}} AND slice <> 'all' AND class IS NULL
GROUP BY slice, value ORDER BY slice, rows DESC, value"""

_BIN_OF = """(SELECT list(low) FROM reliability WHERE reliability.output = predictions.output AND slice = 'all'
    AND least(greatest(predictions.confidence, 0), 1) <= high AND (predictions.confidence > low OR low = 0))"""
_KEPT_FROM = """(SELECT list(min_confidence) FROM abstention
    WHERE abstention.output = predictions.output AND predictions.confidence >= min_confidence)"""


def evaluation_page(folder: str, *, with_texts: bool = False) -> Page:
    """Return the report of a folder.

    Args:
        with_texts: include transcripts, of the evaluated outputs that keep them.
    Raises: ConfigError when it contains no evaluation, JobError when a file cannot be read.
    """
    store = open_store(folder)
    with reaching(store):
        try:
            evaluation = Evaluation.of(store.read("metrics.json"))
            tables = {name: _read(store, name) for name in _TABLES}
        except FileNotFoundError as error:
            raise ConfigError(
                f"{without_query(folder)} contains no evaluation; jobs.evaluate --write writes one"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{without_query(folder)}/metrics.json cannot be read: {error}") from error
    outputs = evaluation.outputs
    if with_texts:
        tables["texts"] = texts_of([output.output for output in outputs], tables["predictions"])
        with_texts = tables["texts"].num_rows > 0
    with asking(**tables) as connection:
        several = len(outputs) > 1
        results = [_result(connection, output, number, several=several) for number, output in enumerate(outputs, 1)]
        sections = [
            section
            for number, output in enumerate(outputs, 1)
            for section in _of_output(
                connection, output.output, number, several=several, classes=output.overall is not None
            )
        ]
        predictions = prediction_list(connection, several=several, with_texts=with_texts)
        behind = listing(connection, predictions, sections)
        compared = [
            section
            for number, comparison in enumerate(evaluation.comparisons, 1)
            for section in _comparison(connection, comparison, number)
        ]
    models = ", ".join(dict.fromkeys(model.partition(":")[0] for output in outputs for model in output.models))
    return Page(
        title=f"Evaluation of {', '.join(_name(output.output) for output in outputs)} · {models} · {evaluation.made_at[:10]}",
        subtitle=f"{', '.join(without_query(output.output) for output in outputs)}; "
        f"{_columns(evaluation)}, made {evaluation.made_at}",
        facts=_facts(outputs[0]),
        sections=[*filter(None, results), *compared, *sections, *([behind] if behind else [])],
        warnings=[sentence for output in outputs for sentence in _warnings(output, several=several)],
        details={
            "version": evaluation.version,
            "intervals": f"{evaluation.interval}, {evaluation.resamples:,} resamples by {evaluation.resample_by}",
            **{f"models of {without_query(output.output)}": ", ".join(output.models) for output in outputs},
        },
        digits=DIGITS,
    )


def _name(output: str) -> str:
    """Return the end of an output's path, with its folder."""
    return "/".join(without_query(output).rstrip("/").split("/")[-2:]).lstrip("/")


def _read(store: Store, name: str) -> pa.Table:
    """Read a table. Columns, and whole tables, that an earlier version did not write are null or empty."""
    schema = SCHEMAS[name]
    try:
        with store.open(f"{name}.parquet") as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        if name not in _LATER_TABLES:
            raise
        table = schema.empty_table()
    columns = [
        table[each.name] if each.name in table.column_names else pa.nulls(table.num_rows, each.type) for each in schema
    ]
    return pa.table(columns, schema=schema)


def _facts(output: OutputResult) -> dict[str, str]:
    """Return the main figures of an output, each with its baseline: the better of chance and majority."""
    facts: dict[str, str] = {}
    if overall := output.overall:
        facts["utterances compared"] = formatted(overall.rows)
        for name, figure in overall.metrics.items():
            guesses = [guess for guess in (figure.chance, figure.majority) if guess is not None]
            beside = f" (guessing: {fraction(max(guesses))})" if guesses else ""
            facts[f"{title_of(name)}{beside}"] = fraction(figure.value)
        facts["calibration error"] = fraction(overall.calibration.expected_error)
    for each in output.dimensions:
        facts[f"CCC of {each.dimension} (guessing: 0)"] = fraction(each.overall.metrics["ccc"].value)
    return facts


def _columns(evaluation: Evaluation) -> str:
    dimensions = {each.dimension: each.labels for output in evaluation.outputs for each in output.dimensions}
    columns = [*([evaluation.labels] if evaluation.labels else []), *dimensions.values()]
    return f"labels in {'column' if len(columns) == 1 else 'columns'} {', '.join(columns)}"


def _warnings(output: OutputResult, *, several: bool) -> Iterator[str]:
    where = f"{formatted(output.output)}: " if several else ""
    yield from (f"{where}{sentence}" for sentence in output.warnings)
    for row in output.published:
        if not row.same_test_set:
            yield (
                f"{where}The published figures for {row.language} in mode {row.mode} are of another test set, and are not "
                f"compared: {'; '.join(row.why_not)}."
            )


_INTERVALS = "low and high are the bounds of the bootstrap interval, if there is one."
Answer = tuple[list[str], list[tuple[Any, ...]], str]
"""Columns, rows, and the query with secrets removed."""
Marking = Callable[[str, Sequence[Hashable], Sequence[int]], Marks]
"""Makes the marks of an output's figure from the key's SQL, the keys, and the number of utterances of each."""


def _ask(connection: duckdb.DuckDBPyConnection, query: str, **outputs: str) -> Answer:
    for name, output in outputs.items():
        query = query.replace(f"{{{name}}}", literal(output))
    has_query = any("?" in output for output in outputs.values())
    return *ask(connection, query), without_query(query) if has_query else query


def _comparison(connection: duckdb.DuckDBPyConnection, comparison: Comparison, number: int) -> Iterator[Section]:
    names, rows, query = _ask(connection, COMPARED, first=comparison.first, second=comparison.second)
    test = comparison.test
    note = f"Paired on {comparison.rows:,} shared utterances" + "".join(
        f"; no figure includes {count:,} {kind}"
        for count, kind in (
            (comparison.only_in_first, "in the first alone"),
            (comparison.only_in_second, "in the second alone"),
            (comparison.labels_differ, "with different true labels"),
        )
        if count
    )
    note += (
        f". Only the second is correct in {test.only_second_right:,}, only the first in {test.only_first_right:,}: "
        f"p = {test.p_value:.2g} ({test.name}); p_value_holm is corrected for the number of comparisons. {_INTERVALS} If the "
        "interval of a difference includes 0, the difference may be chance."
        if test
        else "; nothing can be compared."
    )
    title = f"{formatted(comparison.second)} (second) against {formatted(comparison.first)} (first)"
    if comparison.rows or not comparison.dimensions:
        yield Section(f"comparison-{number}", title, names, rows, query, note)
    if comparison.dimensions:
        names, rows, query = _ask(connection, COMPARED_DIMENSIONS, first=comparison.first, second=comparison.second)
        note = f"Over the utterances with the same label in both. {_INTERVALS}"
        yield Section(f"compared-dimensions-{number}", f"Dimensions: {title}", names, rows, query, note)


def _result(
    connection: duckdb.DuckDBPyConnection, output: OutputResult, number: int, *, several: bool
) -> Section | None:
    names, rows, query = _ask(connection, FIGURES, output=output.output)
    where = f" – {formatted(output.output)}" if several else ""
    published = bool(output.published)
    return (
        result_section(names, rows, query, name=f"figures-{number}", where=where, published=published) if rows else None
    )


def _of_output(
    connection: duckdb.DuckDBPyConnection, output: str, number: int, *, several: bool, classes: bool
) -> Iterator[Section]:
    where = f" – {formatted(output)}" if several else ""

    def answer(query: str) -> Answer:
        return _ask(connection, query, output=output)

    def marks(key: str, keys: Sequence[Hashable], counts: Sequence[int]) -> Marks:
        return rows_marks("predictions", key, keys, counts, f"output = {literal(output)}")

    yield from _dimensions(answer, number, where)
    names, rows, query = answer(SPEAKERS)
    if rows:
        note = "Mean and standard deviation of the figures of each speaker."
        yield Section(f"speakers-{number}", f"Over speakers{where}", names, rows, query, note)
    if classes:
        yield from _classes(answer, marks, number, where)


def _dimensions(answer: Callable[[str], Answer], number: int, where: str) -> Iterator[Section]:
    names, rows, query = answer(DIMENSIONS)
    if rows:
        note = f"{_INTERVALS} chance: labels drawn at random; mean_label: the mean of the labels in every row."
        yield Section(f"dimensions-{number}", f"Dimensions{where}", names, rows, query, note)
        names, rows, query = answer(DIMENSION_SLICES)
    if rows:
        note = "Figures of small slices are mostly chance. low and high are the bounds of the CCC."
        yield Section(f"dimension-slices-{number}", f"Slices of dimensions{where}", names, rows, query, note)


def _classes(answer: Callable[[str], Answer], marks: Marking, number: int, where: str) -> Iterator[Section]:
    names, rows, query = answer(PUBLISHED)
    if rows:
        note = (
            "The user declares that this is the test set of the model card; its classes have the same numbers of clips."
        )
        yield Section(f"published-{number}", f"Beside the published figures{where}", names, rows, query, note)
    yield _confusion(answer(CONFUSION), marks, f"confusion-{number}", where)
    yield _reliability(answer(RELIABILITY), marks, f"reliability-{number}", where)
    yield _abstention(answer(ABSTENTION), marks, f"abstention-{number}", where)
    names, rows, query = answer(CLASSES)
    name = f"classes-{number}"
    classes = [row[0] for row in rows]
    svg = plots.bars(classes, [row[3] for row in rows], label="F1", form="{:.3f}", name=name)
    alt = listed(classes, [fraction(row[3]) for row in rows])
    behind = marks("[truth]", classes, [row[4] for row in rows])
    yield Section(name, f"F1 by class{where}", names, rows, query, "", svg, alt, marks=behind)
    names, rows, query = answer(SLICES)
    if rows:
        yield Section(
            f"slices-{number}",
            f"Slices{where}",
            names,
            rows,
            query,
            "Figures of small slices are mostly chance. low and high are the bounds of the accuracy.",
        )


def _confusion(answer: Answer, marks: Marking, name: str, where: str) -> Section:
    names, rows, query = answer
    classes = sorted({row[0] for row in rows})
    cells = {(row[0], row[1]): row for row in rows}
    counts = [[cells[truth, other][2] for other in classes] for truth in classes]
    shares = [[cells[truth, other][3] for other in classes] for truth in classes]
    svg = plots.confusions(classes, counts, shares, name=name)
    right = [fraction(shares[place][place]) for place in range(len(classes))]
    alt = f"share of each class that is recognised correctly: {listed(classes, right)}"
    note = (
        "Utterances by true class (rows) and predicted class (columns); a stronger colour is a larger share of the row."
    )
    behind = marks("[[truth, predicted]]", [row[:2] for row in rows], [row[2] for row in rows])
    return Section(name, f"Confusions{where}", names, rows, query, note, svg, alt, marks=behind)


def _reliability(answer: Answer, marks: Marking, name: str, where: str) -> Section:
    names, rows, query = answer
    svg = plots.reliability([row[3] for row in rows], [row[4] for row in rows], [row[2] for row in rows], name=name)
    alt = listed([f"at confidence {fraction(row[3])}" for row in rows], [f"{fraction(row[4])} correct" for row in rows])
    note = "On the dashed line the accuracy equals the confidence; larger dots are more utterances."
    behind = marks(_BIN_OF, [row[0] for row in rows], [row[2] for row in rows])
    return Section(name, f"Reliability{where}", names, rows, query, note, svg, alt, marks=behind)


def _abstention(answer: Answer, marks: Marking, name: str, where: str) -> Section:
    names, rows, query = answer
    kept = [row for row in rows if row[1]]
    svg = plots.coverage([row[2] for row in kept], [row[3] for row in kept], name=name)
    alt = listed(
        [f"from confidence {row[0]:g}" for row in kept],
        [f"{fraction(row[2])} remain, {fraction(row[3])} correct" for row in kept],
    )
    note = "Share of utterances that --min-confidence would keep, and their accuracy; each dot is a row of the table."
    behind = marks(_KEPT_FROM, [row[0] for row in kept], [row[1] for row in kept])
    return Section(name, f"Abstention{where}", names, rows, query, note, svg, alt, marks=behind)

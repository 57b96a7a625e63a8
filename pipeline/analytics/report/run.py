"""Report of one finished run: emotions, confidence, rejects and throughput.

Costs a few passes over narrow columns of the run's rows, one footer per part, and one listing.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.analytics.report import plots
from pipeline.analytics.report.behind import Listing, Marks, listing, rows_marks
from pipeline.analytics.report.conversation import largest_conversations
from pipeline.analytics.report.outputs import further_sections, output_sections
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed, share
from pipeline.analytics.report.throughput import PARTS, Speed, parts_table, speed_of, throughput
from pipeline.analytics.report.utterances import emotion_sql, model_names, utterance_list
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, asking, quoted
from pipeline.errors import ConfigError
from pipeline.layout import REPORT, run_key
from pipeline.redaction import without_query
from pipeline.schema import EMOTIONS
from pipeline.storage.cleanup import reaching

if TYPE_CHECKING:
    import duckdb

_BINS = 20
_VALUES = 20

EMOTION = """SELECT EMOTION_OR_WHY AS emotion, count(*) AS utterances,
    count(*) / sum(count(*)) OVER () AS share, sum(duration_s) / 3600 AS hours, avg(confidence) AS confidence
FROM utterances GROUP BY ALL ORDER BY utterances DESC, emotion"""

_BIN = f"least(floor(confidence::DOUBLE * {_BINS}), {_BINS - 1}) / {_BINS}"
CONFIDENCE = f"""SELECT {_BIN} AS confidence_from,
    count(*) AS utterances
FROM utterances WHERE confidence IS NOT NULL GROUP BY ALL ORDER BY confidence_from"""

REJECTS = "SELECT reason, stage, count(*) AS rows FROM rejects GROUP BY ALL ORDER BY rows DESC, reason, stage"

REJECTED = Listing(
    name="examples",
    title="Rejected rows",
    source="(SELECT *, manifest || ':' || line AS place FROM rejects)",
    identity="place",
    columns="reason, recording_id, audio, detail, manifest, line",
    order="reason, manifest, line",
    noun="rejected rows",
)


def _value(column: str) -> str:
    return f"coalesce({quoted(column)}::VARCHAR, '(none)')"


def by_column(column: str) -> str:
    """Return the query for one column: its most frequent values, and the number of utterances of each emotion."""
    counts = ", ".join(f"count(*) FILTER (emotion = '{emotion}') AS {emotion}" for emotion in EMOTIONS)
    return f"""SELECT {_value(column)} AS {quoted(column)}, count(*) AS utterances,
    sum(duration_s) / 3600 AS hours, avg(confidence) AS mean_confidence, {counts}
FROM utterances GROUP BY 1 ORDER BY utterances DESC, 1 LIMIT {_VALUES}"""


def run_page(rows: Rows, *, with_texts: bool = False) -> Page:
    """Return the report of the only run in `rows`.

    Args:
        with_texts: include transcripts, in the lists of utterances and in conversations; nothing else has them.
    Raises: ConfigError when `rows` does not contain exactly one run, JobError when a file cannot be read.
    """
    if len(rows.plans) != 1:
        raise ConfigError(f"{without_query(rows.store.root)} has no finished run to report on")
    (plan,) = rows.plans
    with reaching(rows.store):
        report = json.loads(rows.store.read(run_key(plan.plan, REPORT)))
        parts = parts_table(rows, plan)
    speed = speed_of(report, parts)
    with asking(utterances=rows.utterances(), rejects=rows.rejects(), parts=parts) as connection:
        words = with_texts and rows.has_words
        sections = [
            *_sections(connection, plan, speed),
            *largest_conversations(connection, rows, with_texts=words),
        ]
        utterances = utterance_list(connection, rows, sections, with_texts=words)
        lists = [utterances, REJECTED, PARTS]
        listed_rows = [listing(connection, each, sections) for each in lists]
    return Page(
        title=f"{_corpus(plan)} · {', '.join(model_names(plan))} · {plan.created_at[:10]}",
        subtitle=f"Run {plan.plan} of {without_query(report.get('output', rows.store.root))}, planned {plan.created_at}, "
        f"mode {plan.settings.mode}",
        facts=_facts(report, speed),
        sections=[*sections, *filter(None, listed_rows)],
        details=_details(plan, report),
    )


def _corpus(plan: Plan) -> str:
    """Return the end of the first manifest's path, with its folder."""
    first, *others = map(without_query, plan.manifests)
    name = "/".join(first.rstrip("/").split("/")[-2:]).lstrip("/")
    return f"{name} and {len(others)} more" if others else name


def _facts(report: Mapping[str, Any], speed: Speed | None) -> dict[str, str]:
    measured = {"times real time": f"{speed.times_real_time:,.3g}"} if speed and speed.audio_s else {}
    return {
        "utterances": formatted(report["utterances"]),
        "recordings annotated": formatted(report["recordings_annotated"]),
        "hours of audio": formatted(round(report["audio_hours"], 3)),
        "rows rejected": f"{formatted(report['rejected'])} ({share(report['rejected'], report['rows'])})",
        **({"rows retried": formatted(sum(report["retried"].values()))} if "retried" in report else {}),
        **({"rows excluded": formatted(sum(report["excluded"].values()))} if "excluded" in report else {}),
        **measured,
    }


def _details(plan: Plan, report: Mapping[str, Any]) -> dict[str, str]:
    models = {
        f"model {role}": ", ".join(
            f"{name} {formatted(value)}" for name, value in pin.document().items() if value is not None
        )
        for role, pin in plan.models.items()
    }
    names = ("started_at", "finished_at", "wall_seconds", "shards_run")
    timed = {name.replace("_", " "): formatted(report[name]) for name in names if name in report}
    return {
        "manifests": ", ".join(map(without_query, plan.manifests)),
        **timed,
        **{name.replace("_", " "): _listed(value) for name, value in plan.settings.document().items()},
        **{f"--{name.replace('_', '-')}": _listed(value) for name, value in plan.policy.shown().items()},
        **({"rows retried, by run": _listed(plan.retries)} if plan.retries else {}),
        **({"rows excluded by": _listed(plan.excluded)} if plan.policy else {}),
        **models,
        "seconds in stages": _listed(report["stage_seconds"]),
        "configuration": plan.config_hash,
        "versions": _listed(report.get("versions", {})),
    }


def _listed(value: Any) -> str:  # noqa: ANN401 - settings are of many types
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {formatted(each)}" for name, each in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(formatted, value)) or "–"
    return formatted(value)


def _sections(connection: duckdb.DuckDBPyConnection, plan: Plan, speed: Speed | None) -> Iterator[Section]:
    why = emotion_sql(plan)
    yield _emotions(connection, why)
    if plan.settings.schema_version > 2:
        yield from output_sections(connection)
        yield from further_sections(connection, plan.settings.also)
    yield _confidence(connection)
    yield throughput(connection, speed)
    yield from _rejects(connection)
    for number, column in enumerate(dict.fromkeys(["language", *plan.settings.partition_by])):
        yield _by_column(connection, column, f"by-{number}")


def _emotions(connection: duckdb.DuckDBPyConnection, why: str) -> Section:
    query = EMOTION.replace("EMOTION_OR_WHY", why)
    names, rows = ask(connection, query)
    emotions = [row[0] for row in rows]
    svg = (
        plots.bars(emotions, [100 * row[2] for row in rows], label="% of utterances", form="{:.1f}", name="emotion")
        if rows
        else None
    )
    alt = listed(emotions, [share(row[2], 1) for row in rows])
    note = "" if rows else "No utterance."
    marks = rows_marks("utterances", f"[{why}]", emotions, [row[1] for row in rows])
    return Section("emotion", "Emotions", names, rows, query, note, svg, alt, marks=marks)


def _confidence(connection: duckdb.DuckDBPyConnection) -> Section:
    names, rows = ask(connection, CONFIDENCE)
    total = sum(row[1] for row in rows)
    sure = sum(row[1] for row in rows if row[0] >= 0.5)
    svg = (
        plots.columns(
            [row[0] for row in rows],
            1 / _BINS,
            [row[1] for row in rows],
            x="confidence",
            y="utterances",
            bounds=(0, 1),
            name="confidence",
        )
        if rows
        else None
    )
    alt = f"{share(sure, total)} of utterances have a confidence of 0.5 or more"
    note = f"Score of the predicted label; {alt}." if rows else "No utterance has one."
    bins, counts = [row[0] for row in rows], [row[1] for row in rows]
    marks = rows_marks("utterances", f"[{_BIN}]", bins, counts, "confidence IS NOT NULL")
    return Section("confidence", "Confidence", names, rows, CONFIDENCE, note, svg, alt, marks=marks)


def _rejects(connection: duckdb.DuckDBPyConnection) -> Iterator[Section]:
    names, rows = ask(connection, REJECTS)
    if not rows:
        yield Section("rejects", "Rejects", names, rows, REJECTS, "No row was rejected.")
        return
    names_of_reasons = [reason for reason, _, _ in rows]
    reasons = [reason if names_of_reasons.count(reason) == 1 else f"{reason} ({stage})" for reason, stage, _ in rows]
    svg = plots.bars(reasons, [row[2] for row in rows], label="rows", form="{:,.0f}", name="rejects")
    alt = listed(reasons, [formatted(row[2]) for row in rows])
    keys = [(reason, stage) for reason, stage, _ in rows]
    marks = rows_marks(REJECTED.source, "[[reason, stage]]", keys, [row[2] for row in rows])
    note = "Rows that could not be annotated."
    yield Section("rejects", "Rejects by reason", names, rows, REJECTS, note, svg, alt, marks=marks)


def _by_column(connection: duckdb.DuckDBPyConnection, column: str, name: str) -> Section:
    query = by_column(column)
    names, rows = ask(connection, query)
    svg, alt = None, ""
    if rows:
        shares = [[number / row[1] for number in row[4:]] for row in rows]
        svg = plots.stacks([formatted(row[0]) for row in rows], shares, first=4, name=name)
        alt = listed([formatted(row[0]) for row in rows], [plots.most(each) for each in shares])
    note = f"The {_VALUES} most frequent values." if len(rows) == _VALUES else ""
    places: dict[Hashable, tuple[str, int]] = {
        (row[0], emotion): (f"r{place}-c{4 + number}", row[4 + number])
        for place, row in enumerate(rows)
        for number, emotion in enumerate(EMOTIONS)
    }
    value = _value(column)
    largest = f"(SELECT {value} FROM utterances GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {_VALUES})"
    marks = Marks("utterances", f"[[{value}, emotion]]", places, f"emotion IS NOT NULL AND {value} IN {largest}")
    cells = range(4, 4 + len(EMOTIONS))
    return Section(name, f"Emotions by {column}", names, rows, query, note, svg, alt, cells=cells, marks=marks)

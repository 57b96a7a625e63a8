"""Report of one finished run: emotions, confidence, rejects and throughput.

Costs a few passes over narrow columns of the run's rows, one footer per part, and one listing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.analytics.report import plots
from pipeline.analytics.report.outputs import further_sections, output_sections
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed, share
from pipeline.dataset.parts import read_receipts
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, asking, quoted
from pipeline.errors import ConfigError
from pipeline.layout import REPORT, UTTERANCES, run_key
from pipeline.redaction import without_query
from pipeline.schema import EMOTIONS, OTHER_LANGUAGE
from pipeline.storage.cleanup import reaching, walk

if TYPE_CHECKING:
    import duckdb

_BINS = 20
_INTERVALS = 40
_EXAMPLES = 3
_VALUES = 20
_RECORDINGS = 4
_LEAST_WORK_S = 1.0

_WITHOUT_REASONS = "coalesce(emotion, CASE WHEN abstained THEN '(abstained)' ELSE '(no model)' END)"
_WITH_REASONS = f"""coalesce(emotion,
    CASE emotion_null_reason WHEN '{OTHER_LANGUAGE}' THEN '(no model)' ELSE '(' || emotion_null_reason || ')' END)"""
"""SQL for the emotion, or the reason for its absence; datasets of schema version 1 have no column of reasons."""

EMOTION = """SELECT EMOTION_OR_WHY AS emotion, count(*) AS utterances,
    count(*) / sum(count(*)) OVER () AS share, sum(duration_s) / 3600 AS hours, avg(confidence) AS confidence
FROM utterances GROUP BY ALL ORDER BY utterances DESC, emotion"""

CONFIDENCE = f"""SELECT least(floor(confidence::DOUBLE * {_BINS}), {_BINS - 1}) / {_BINS} AS confidence_from,
    count(*) AS utterances
FROM utterances WHERE confidence IS NOT NULL GROUP BY ALL ORDER BY confidence_from"""

REJECTS = "SELECT reason, stage, count(*) AS rows FROM rejects GROUP BY ALL ORDER BY rows DESC, reason, stage"

EXAMPLES = f"""SELECT reason, recording_id, audio, detail, manifest, line FROM rejects
QUALIFY row_number() OVER (PARTITION BY reason ORDER BY manifest, line) <= {_EXAMPLES} ORDER BY reason, manifest, line"""

THROUGHPUT = f"""WITH axis AS (
    SELECT least(min(planned_s), min(start_s)) AS first,
        greatest((max(written_s) - least(min(planned_s), min(start_s))) / {_INTERVALS}, 1.0) AS step_s FROM parts),
steps AS (
    SELECT number, step_s, first, first + number * step_s AS from_s FROM axis, range({_INTERVALS}) AS steps(number)),
spread AS (
    SELECT number, step_s, number = least(floor((written_s - first) / step_s), {_INTERVALS - 1}) AS ends_here,
        audio_s * greatest(least(written_s, from_s + step_s) - greatest(start_s, from_s), 0) / (written_s - start_s) AS audio_s
    FROM steps JOIN parts ON start_s <= from_s + step_s AND written_s >= from_s)
SELECT number * step_s / 60 AS from_minute, step_s, count(*) FILTER (ends_here) AS parts,
    sum(audio_s) / 3600 AS audio_hours, sum(audio_s) / step_s AS times_real_time
FROM spread GROUP BY number, step_s HAVING sum(audio_s) > 0 OR bool_or(ends_here) ORDER BY number"""

TIMELINES = f"""WITH long AS (
    SELECT recording_id, row_number() OVER (ORDER BY max(end_s) - min(start_s) DESC, recording_id) AS place
    FROM utterances WHERE start_s IS NOT NULL AND end_s IS NOT NULL GROUP BY recording_id HAVING count(*) > 1
    ORDER BY place LIMIT {_RECORDINGS})
SELECT place, recording_id, segment_index, start_s, end_s, EMOTION_OR_WHY AS emotion, label, confidence
FROM utterances JOIN long USING (recording_id) WHERE start_s IS NOT NULL AND end_s IS NOT NULL ORDER BY place, segment_index"""


def by_column(column: str) -> str:
    """Return the query for one column: its most frequent values, and the number of utterances of each emotion."""
    counts = ", ".join(f"count(*) FILTER (emotion = '{emotion}') AS {emotion}" for emotion in EMOTIONS)
    return f"""SELECT coalesce({quoted(column)}::VARCHAR, '(none)') AS {quoted(column)}, count(*) AS utterances,
    sum(duration_s) / 3600 AS hours, avg(confidence) AS mean_confidence, {counts}
FROM utterances GROUP BY 1 ORDER BY utterances DESC, 1 LIMIT {_VALUES}"""


def run_page(rows: Rows, *, with_texts: bool = False) -> Page:
    """Return the report of the only run in `rows`.

    Args:
        with_texts: include transcripts in the tables of long recordings, the only place where texts appear.
    Raises: ConfigError when `rows` does not contain exactly one run, JobError when a file cannot be read.
    """
    if len(rows.plans) != 1:
        raise ConfigError(f"{without_query(rows.store.root)} has no finished run to report on")
    (plan,) = rows.plans
    with reaching(rows.store):
        report = json.loads(rows.store.read(run_key(plan.plan, REPORT)))
        parts = _parts(rows, plan)
    speed = _speed(report, parts)
    with asking(utterances=rows.utterances(), rejects=rows.rejects(), parts=parts) as connection:
        sections = list(_sections(connection, plan, speed, with_texts=with_texts))
    return Page(
        title=f"Run {plan.plan}",
        subtitle=f"{without_query(report.get('output', rows.store.root))}, planned {plan.created_at}, "
        f"mode {plan.settings.mode}",
        facts=_facts(report, speed),
        sections=sections,
        details=_details(plan, report),
    )


def _parts(rows: Rows, plan: Plan) -> pa.Table:
    """Return a row for each part: its audio, the start of work on its shard, and its modification time in the store.

    The work on a shard lasts from its first stage to its commit: the seconds of its stages and of the waits between
    them. Receipts without timings count as one second, which is also the resolution of object stores.
    """
    keys = rows.parts[plan.plan]
    written = {file.key: file.modified_s for file in walk(rows.store, UTTERANCES)}
    planned_s = datetime.fromisoformat(plan.created_at).timestamp()
    shards, starts, ends, audio = sorted(keys), [], [], []
    for shard, receipt in zip(shards, read_receipts(rows.store, keys), strict=True):
        waited_s = sum(figures.get("waited_s", 0.0) for figures in receipt.figures.values())
        worked_s = max(sum(receipt.stage_s.values()) + waited_s, _LEAST_WORK_S)
        end_s = written[keys[shard]]
        start_s = max(end_s - worked_s, planned_s)
        starts.append(start_s if start_s < end_s else end_s - _LEAST_WORK_S)  # clock of the store behind the driver's
        ends.append(end_s)
        audio.append(receipt.audio_s)
    columns = {"planned_s": [planned_s] * len(shards), "start_s": starts, "written_s": ends, "audio_s": audio}
    numbers = {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    return pa.table({"shard": pa.array(shards, pa.int64()), **numbers})


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput of the last start of a run, the one that finished it.

    Attributes:
        audio_s: audio of the parts that were missing at that start, whichever process wrote them.
        wall_s: seconds from that start to its last part, including the loading of models.
        earlier_parts: number of parts from earlier starts, whose wall time is not recorded.
    """

    audio_s: float
    wall_s: float
    earlier_parts: int

    @property
    def times_real_time(self) -> float:
        """Return the seconds of audio per second of wall time."""
        return self.audio_s / self.wall_s


def _speed(report: Mapping[str, Any], parts: pa.Table) -> Speed | None:
    """Return the throughput, or None if the report has no wall time or the last start annotated nothing."""
    wall_s, new = report.get("wall_seconds"), report.get("shards_run")
    if not wall_s or not new:
        return None
    audio_s = parts.sort_by("written_s")["audio_s"].to_pylist()
    return Speed(sum(audio_s[-new:]), wall_s, max(len(audio_s) - new, 0))


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


def _sections(
    connection: duckdb.DuckDBPyConnection, plan: Plan, speed: Speed | None, *, with_texts: bool
) -> Iterator[Section]:
    why = _WITH_REASONS if plan.settings.schema_version > 1 else _WITHOUT_REASONS
    yield _emotions(connection, why)
    if plan.settings.schema_version > 2:
        yield from output_sections(connection)
        yield from further_sections(connection, plan.settings.also)
    yield _confidence(connection)
    yield _throughput(connection, speed)
    yield from _rejects(connection)
    for number, column in enumerate(dict.fromkeys(["language", *plan.settings.partition_by])):
        yield _by_column(connection, column, f"by-{number}")
    yield from _timelines(connection, why, with_texts=with_texts)


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
    return Section("emotion", "Emotions", names, rows, query, "" if rows else "No utterance.", svg, alt)


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
    return Section("confidence", "Confidence", names, rows, CONFIDENCE, note, svg, alt)


def _throughput(connection: duckdb.DuckDBPyConnection, speed: Speed | None) -> Section:
    names, rows = ask(connection, THROUGHPUT)
    svg, alt = None, "no part"
    if rows:
        width = rows[0][1] / 60
        svg = plots.columns(
            [row[0] for row in rows],
            width,
            [row[4] for row in rows],
            x="minutes since the run was planned",
            y="times real time",
            bounds=(0, rows[-1][0] + width),
            name="throughput",
        )
        alt = f"{sum(row[3] for row in rows):,.3g} hours of audio in {len(rows)} intervals"
    if speed is None:
        overall = "The report has no wall time of a start that wrote parts."
    else:
        overall = (
            f"{speed.audio_s / 3600:,.3g} hours of audio in {speed.wall_s / 60:,.3g} minutes of wall time: "
            f"{speed.times_real_time:,.3g} times real time."
        )
        alt = f"{overall[:-1]}; {alt}"
        if speed.earlier_parts:
            overall += (
                f" This is the last start of the run; {speed.earlier_parts:,} parts were written before it, in an unrecorded "
                "time."
            )
    note = (
        f"{overall} Columns: the audio of each part, spread evenly over the time from the first work on its shard to its "
        "commit; pauses between two starts show as gaps."
    )
    return Section("throughput", "Throughput", names, rows, THROUGHPUT, note, svg, alt)


def _rejects(connection: duckdb.DuckDBPyConnection) -> Iterator[Section]:
    names, rows = ask(connection, REJECTS)
    if not rows:
        yield Section("rejects", "Rejects", names, rows, REJECTS, "No row was rejected.")
        return
    names_of_reasons = [reason for reason, _, _ in rows]
    reasons = [reason if names_of_reasons.count(reason) == 1 else f"{reason} ({stage})" for reason, stage, _ in rows]
    svg = plots.bars(reasons, [row[2] for row in rows], label="rows", form="{:,.0f}", name="rejects")
    alt = listed(reasons, [formatted(row[2]) for row in rows])
    yield Section("rejects", "Rejects by reason", names, rows, REJECTS, "Rows that could not be annotated.", svg, alt)
    names, rows = ask(connection, EXAMPLES)
    note = f"The first {_EXAMPLES} of each reason; rejects/ has all."
    yield Section("examples", "Examples of rejects", names, rows, EXAMPLES, note)


def _by_column(connection: duckdb.DuckDBPyConnection, column: str, name: str) -> Section:
    query = by_column(column)
    names, rows = ask(connection, query)
    svg, alt = None, ""
    if rows:
        shares = [[number / row[1] for number in row[4:]] for row in rows]
        svg = plots.stacks([formatted(row[0]) for row in rows], shares, name=name)
        alt = listed([formatted(row[0]) for row in rows], [plots.most(each) for each in shares])
    note = f"The {_VALUES} most frequent values." if len(rows) == _VALUES else ""
    return Section(name, f"Emotions by {column}", names, rows, query, note, svg, alt)


def _timelines(connection: duckdb.DuckDBPyConnection, why: str, *, with_texts: bool) -> Iterator[Section]:
    query = TIMELINES.replace("EMOTION_OR_WHY", why)
    if with_texts:
        query = query.replace("label, confidence\n", "label, confidence, text\n")
    names, rows = ask(connection, query)
    for place in sorted({row[0] for row in rows}):
        of_recording = [row for row in rows if row[0] == place]
        spans = [(row[3], row[4], row[5]) for row in of_recording]
        seconds: dict[str, float] = {}
        for start, end, emotion in spans:
            seconds[emotion] = seconds.get(emotion, 0.0) + end - start
        name = f"timeline-{place}"
        svg = plots.timeline(spans, name=name)
        alt = listed(list(seconds), [f"{each:,.4g} s" for each in seconds.values()])
        table = [row[2:] for row in of_recording]
        note = f"One of the longest recordings of more than one utterance; {len(of_recording):,} utterances."
        yield Section(
            name,
            f"{formatted(of_recording[0][1])} over time",
            names[2:],
            table,
            f"{query}\n-- place {place}",
            note,
            svg,
            alt,
        )

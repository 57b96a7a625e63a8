"""Conversations over time: a lane for each speaker or channel from 0 on one axis, and the utterances in order.

A conversation is all utterances of one audio file, such as both channels of a call, or of one recording without audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.analytics.report import plots
from pipeline.analytics.report.clips import Audio, players
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed, literal
from pipeline.analytics.report.utterances import emotion_sql, model_names, speaker_sql
from pipeline.dataset.reader import Rows, asking
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS

if TYPE_CHECKING:
    import duckdb

_LARGEST = 4
_ROWS = 300
"""Number of utterances of a conversation on the page of a run; the page of the recording has all."""
_KEY = "coalesce(audio, recording_id)"
_TIMED = "utterances.start_s IS NOT NULL AND utterances.end_s IS NOT NULL"
_ORDER = "utterances.start_s, utterances.end_s, utterance_id"


def _columns(rows: Rows, *, with_texts: bool) -> str:
    schema = rows.schema().names
    lane = speaker_sql(schema)
    columns = [
        "round(start_s, 2) AS start_s",
        "round(end_s, 2) AS end_s",
        f"coalesce({lane}, '(unknown)') AS speaker",
        *(["text"] if with_texts else []),
        f"{emotion_sql(rows.plans[0])} AS emotion",
        "label",
        "round(confidence::DOUBLE, 3) AS confidence",
        *(f"round({name}::DOUBLE, 3) AS {name}" for name in DIMENSIONS if name in schema),
    ]
    return ", ".join(columns)


def largest_conversations(connection: duckdb.DuckDBPyConnection, rows: Rows, *, with_texts: bool) -> Iterator[Section]:
    """Yield a section for each conversation with the most utterances, of those with several."""
    query = f"""WITH largest AS (
    SELECT {_KEY} AS conversation, count(*) AS utterances, min(recording_id) AS recording, count(DISTINCT recording_id) AS parts,
        row_number() OVER (ORDER BY count(*) DESC, conversation) AS place
    FROM utterances WHERE {_TIMED} GROUP BY 1 HAVING count(*) > 1 ORDER BY place LIMIT {_LARGEST})
SELECT place, conversation, utterances, recording, parts,
    {_columns(rows, with_texts=with_texts)}
FROM utterances JOIN largest ON {_KEY} = conversation WHERE {_TIMED}
QUALIFY row_number() OVER (PARTITION BY place ORDER BY {_ORDER}) <= {_ROWS} ORDER BY place, {_ORDER}"""
    names, answer = ask(connection, query)
    for place in sorted({row[0] for row in answer}):
        of_place = [row for row in answer if row[0] == place]
        _, conversation, utterances, recording, parts = of_place[0][:5]
        section = _section(
            names[5:], [row[5:] for row in of_place], f"{query}\n-- place {place}", f"timeline-{place}",
            recording if parts == 1 else conversation,
        )  # fmt: skip
        many = "One of the conversations with the most utterances"
        note = f"{many}; {utterances:,} utterances." if utterances <= _ROWS else (
            f"{many}; the first {_ROWS} of {utterances:,} utterances. jobs.report --recording shows all."
        )  # fmt: skip
        yield replace(section, note=note)


def recording_page(rows: Rows, recording: str, *, with_texts: bool, audio: Audio | None) -> Page:
    """Return the page of one conversation.

    Args:
        recording: id of a recording, or the audio reference of one.
        with_texts: include the transcripts, if the output keeps them.
        audio: make the utterances playable.
    Raises: ConfigError when there is no such utterance, JobError when a file cannot be read.
    """
    where = without_query(rows.store.root)
    if not rows.plans:
        raise ConfigError(f"{where} has no finished run to report on")
    wanted = literal(recording)
    columns = _columns(rows, with_texts=with_texts and rows.has_words)
    rest = f"""FROM utterances WHERE {_TIMED}
    AND {_KEY} = (SELECT min({_KEY}) FROM utterances WHERE recording_id = {wanted} OR audio = {wanted})
ORDER BY {_ORDER}"""
    with asking(utterances=rows.utterances()) as connection:
        names, answer = ask(connection, f"SELECT audio, channel, {columns}\n{rest}")
    if not answer:
        raise ConfigError(f"{where} has no utterance with times of a recording {without_query(recording)!r}")
    sources, answer = [row[:4] for row in answer], [row[2:] for row in answer]
    section = _section(names[2:], answer, f"SELECT {columns}\n{rest}", "conversation", recording)
    media = ""
    if audio is not None:
        media = audio.sources
        made = players(rows, sources, audio)
        section = replace(section, players=made.addresses, note=made.note)
    models = dict.fromkeys(model for plan in rows.plans for model in model_names(plan))
    seconds = max(row[1] for row in answer)
    return Page(
        title=f"{section.title} · {', '.join(models)} · {rows.plans[-1].created_at[:10]}",
        subtitle=where,
        facts={
            "utterances": formatted(len(answer)),
            "speakers or channels": formatted(len({row[2] for row in answer})),
            "minutes": f"{seconds / 60:,.2f}",
        },
        sections=[replace(section, opened=True)],
        media=media,
    )


def _section(names: Sequence[str], rows: Sequence[Sequence[Any]], query: str, name: str, title: str) -> Section:
    kept = [
        place
        for place, each in enumerate(names)
        if each not in DIMENSIONS or any(row[place] is not None for row in rows)
    ]
    names, rows = [names[place] for place in kept], [[row[place] for place in kept] for row in rows]
    emotion = names.index("emotion")
    spans = [(*row[:3], row[emotion]) for row in rows]
    curves = {each: [row[names.index(each)] for row in rows] for each in DIMENSIONS if each in names}
    seconds: dict[str, float] = {}
    for start, end, speaker, _ in spans:
        seconds[speaker] = seconds.get(speaker, 0.0) + end - start
    svg = plots.conversation(spans, curves, name=name)
    alt = listed(list(seconds), [f"{each:,.4g} s" for each in seconds.values()])
    shown = formatted(title).rstrip("/").rpartition("/")[2]
    return Section(name, f"{shown} over time", names, rows, query, "", svg, alt, long=True)

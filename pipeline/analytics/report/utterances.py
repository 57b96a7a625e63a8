"""The list of utterances on a run's page: when, who, what, and with which emotion."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from pipeline.analytics.report.behind import Listing
from pipeline.analytics.report.page import Section
from pipeline.dataset.reader import Rows, quoted
from pipeline.schema import DIMENSIONS, EMOTIONS

if TYPE_CHECKING:
    import duckdb

_SPEAKERS = ("speaker_id", "speaker")
"""Columns that name the speaker, the most specific first."""
_SCORES = 3


def utterance_list(
    connection: duckdb.DuckDBPyConnection, rows: Rows, why: str, sections: Iterable[Section], *, with_texts: bool
) -> Listing:
    """Return the list of a run's utterances.

    Args:
        why: SQL for the emotion, or the reason for its absence.
        sections: the sections of the page; a dimension that has one is a column of the list.
    """
    columns = rows.schema().names
    drawn = {section.name for section in sections}
    ((channels,),) = connection.sql("SELECT count(channel) FROM utterances").fetchall()
    known = channels or not set(columns).isdisjoint(_SPEAKERS)
    return Listing(
        name="utterances",
        title="Utterances",
        source="utterances",
        identity="utterance_id",
        columns=",\n    ".join(
            [
                "recording_id",
                "round(start_s, 2) AS start_s",
                "round(end_s, 2) AS end_s",
                *([f"{speaker_sql(columns)} AS speaker"] if known else []),
                *(["text"] if with_texts else []),
                f"{why} AS emotion",
                "round(confidence::DOUBLE, 3) AS confidence",
                f"{scores_sql(columns)} AS scores",
                *(f"round({name}::DOUBLE, 3) AS {name}" for name in DIMENSIONS if name in drawn),
            ]
        ),
        order="recording_id, segment_index, utterance_id",
        noun="utterances",
    )


def speaker_sql(columns: Collection[str]) -> str:
    """Return SQL for who speaks, or else the channel."""
    known = [f"{quoted(name)}::VARCHAR" for name in _SPEAKERS if name in columns]
    return f"coalesce({', '.join(known)}, 'channel ' || channel)" if known else "'channel ' || channel"


def scores_sql(columns: Collection[str]) -> str:
    """Return SQL for the largest scores in words, such as `joy 0.71, fear 0.20`."""
    if "label_scores" in columns:
        pairs = "list_transform(map_entries(label_scores), lambda each: {'score': each.value, 'name': each.key})"
    else:
        pairs = "[" + ", ".join(f"{{'score': scores.{each}, 'name': '{each}'}}" for each in EMOTIONS) + "]"
    kept = f"list_filter({pairs}, lambda each: each.score >= 0.005)"
    return (
        f"array_to_string(list_transform(list_reverse_sort({kept})[:{_SCORES}],\n"
        "        lambda each: each.name || ' ' || printf('%.2f', each.score::DOUBLE)), ', ')"
    )

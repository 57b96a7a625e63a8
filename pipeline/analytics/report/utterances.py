"""The list of utterances on a run's page: when, who, what, and with which emotion."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from pipeline.analytics.report.behind import Listing
from pipeline.analytics.report.page import Section
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, quoted
from pipeline.pins import Task
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS, EMOTIONS, OTHER_LANGUAGE

if TYPE_CHECKING:
    import duckdb

_SPEAKERS = ("speaker_id", "speaker")
"""Columns that name the speaker, the most specific first."""
_SCORES = 3
_WITHOUT_REASONS = "coalesce(emotion, CASE WHEN abstained THEN '(abstained)' ELSE '(no model)' END)"
_WITH_REASONS = f"""coalesce(emotion,
    CASE emotion_null_reason WHEN '{OTHER_LANGUAGE}' THEN '(no model)' ELSE '(' || emotion_null_reason || ')' END)"""


def utterance_list(
    connection: duckdb.DuckDBPyConnection, rows: Rows, sections: Iterable[Section], *, with_texts: bool
) -> Listing:
    """Return the list of a run's utterances.

    Args:
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
                f"{emotion_sql(rows.plans[0])} AS emotion",
                "round(confidence::DOUBLE, 3) AS confidence",
                f"{scores_sql(columns)} AS scores",
                *(f"round({name}::DOUBLE, 3) AS {name}" for name in DIMENSIONS if name in drawn),
            ]
        ),
        order="recording_id, segment_index, utterance_id",
        noun="utterances",
    )


def model_names(plan: Plan) -> list[str]:
    """Return the names of the models that recognise emotions, without the folder or owner."""
    specs = [pin.spec for role, pin in plan.models.items() if role.task == Task.EMOTION]
    return list(dict.fromkeys(without_query(spec).rstrip("/").rpartition("/")[2] for spec in specs))


def emotion_sql(plan: Plan) -> str:
    """Return SQL for the emotion, or the reason for its absence; datasets of schema version 1 have no column of reasons."""
    return _WITH_REASONS if plan.settings.schema_version > 1 else _WITHOUT_REASONS


def speaker_sql(columns: Collection[str]) -> str:
    """Return SQL for who speaks and in which channel; null if no column says so."""
    known = ", ".join(f"{quoted(name)}::VARCHAR" for name in _SPEAKERS if name in columns)
    who = f"coalesce({known}), " if known else ""
    return f"nullif(concat_ws(' · ', {who}'channel ' || channel), '')"


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

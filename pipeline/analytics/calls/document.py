"""Call metrics as JSON documents, in a shape close to the conversation characteristics of AWS Transcribe Call Analytics.

Names of objects and of fields that mean the same are Amazon's; `Emotion` takes the place of `Sentiment`, and `Loudness`,
`Dimensions` and `Overlap` are additions. docs/calls.md describes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.analytics.calls.columns import QUARTERS
from pipeline.manifest.python_values import plain_rows
from pipeline.schema import DIMENSIONS

Row = Mapping[str, Any]


def talk_share(row: Row, total_s: float) -> float | None:
    """Return a speaker's share of the time that all speakers talk; None if nobody does."""
    return row["talk_s"] / total_s if total_s else None


def words_per_minute(row: Row) -> float | None:
    """Return the words per minute of talk; None without words that have a duration."""
    return 60 * row["words"] / row["worded_s"] if row["worded_s"] else None


def loudness_dbfs(row: Row) -> float | None:
    """Return the mean level in dB relative to full scale; None where it is not measured."""
    return 10 * math.log10(row["loudness_power_s"] / row["loudness_s"]) if row["loudness_power_s"] else None


def emotion_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each emotion among the utterances that have one, without those that nobody has."""
    total = sum(counts.values())
    return {emotion: count / total for emotion, count in counts.items() if count}


def by_call(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield each call: its own row, and those of its speakers. The table is that of `call_rows`."""
    for _, rows in groupby(plain_rows(table), key=lambda row: [row[name] for name in names]):
        of_call, *speakers = rows  # "call" is sorted before "speaker"
        yield of_call, [*speakers]


def document(call: Row, speakers: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return one call as a JSON document. Times are in milliseconds, shares 0 to 1."""
    of_speaker = {str(row["speaker"]): row for row in speakers}

    def details(field: str, value_of: Any) -> dict[str, Any]:  # noqa: ANN401 - a function of a row
        values = {name: value_of(row) for name, row in of_speaker.items()}
        return {"DetailsByParticipant": {name: {field: value} for name, value in values.items() if value is not None}}

    total_s = sum(row["talk_s"] for row in speakers)
    return {
        "Call": {name: call[name] for name in names},
        "Participants": [{"ParticipantRole": name} for name in of_speaker],
        "ConversationCharacteristics": {
            "TotalConversationDurationMillis": _millis(call["length_s"]),
            "TalkTime": {
                "TotalTimeMillis": _millis(call["talk_s"]),
                "DetailsByParticipant": {
                    name: {"TotalTimeMillis": _millis(row["talk_s"]), "Share": talk_share(row, total_s)}
                    for name, row in of_speaker.items()
                },
            },
            "NonTalkTime": {"TotalTimeMillis": _millis(call["silence_s"])},
            "Overlap": {"TotalTimeMillis": _millis(call["overlap_s"])},
            "TalkSpeed": details("AverageWordsPerMinute", words_per_minute),
            "Interruptions": {
                "TotalCount": call["interruptions"],
                "CountByInterrupter": {name: row["interruptions"] for name, row in of_speaker.items()},
            },
            "Loudness": details("AverageDbfs", loudness_dbfs),
            "Emotion": {
                **_emotion(call),
                "DetailsByParticipant": {name: _emotion(row) for name, row in of_speaker.items()},
            },
            "Dimensions": {
                "DetailsByParticipant": {name: _dimensions(row) for name, row in of_speaker.items() if _dimensions(row)}
            },
        },
    }


def _emotion(row: Row) -> dict[str, Any]:
    moves = {
        one: {other: count for other, count in others.items() if count} for one, others in row["transitions"].items()
    }
    return {
        "Overall": emotion_shares(row["by_emotion"]),
        "ByPeriod": {"QUARTER": [emotion_shares(row["by_quarter"][name]) for name in QUARTERS]},
        "First": row["first_emotion"],
        "Last": row["last_emotion"],
        "Transitions": {one: others for one, others in moves.items() if others},
    }


def _dimensions(row: Row) -> dict[str, float]:
    return {name: row[f"{name}_sum"] / row[f"{name}_count"] for name in DIMENSIONS if row[f"{name}_count"]}


def _millis(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)

"""Checks of `asr_flag` and `words` against the text and the other columns of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.columns import WORDS
from pipeline.config.settings import Settings
from pipeline.schema import LOW_LOGPROB, NO_SPEECH, AsrFlag

_SINCE = 3
"""Schema version from which outputs have `asr_flag`."""
_NEAR = 1e-5
"""Tolerance between a float32 figure and the number that was compared."""
_NEAR_S = 2e-3
"""Tolerance of times, which are rounded to milliseconds."""
_COLUMNS = ("text", "text_source", "asr_avg_logprob", "asr_flag", "emotion_null_reason", "start_s", "end_s")


def bad_transcripts(rows: pa.Table, settings: Settings) -> NDArray[np.bool_]:
    """Return a mask of rows whose flag or words are not those of their text."""
    if settings.schema_version < _SINCE:
        return np.zeros(rows.num_rows, dtype=bool)
    records = rows.select([*_COLUMNS, *([WORDS] if settings.words else [])]).to_pylist()
    return np.array([not (_flagged_well(row, settings) and _spelled_well(row)) for row in records], dtype=bool)


def _flagged_well(row: Mapping[str, Any], settings: Settings) -> bool:
    flag: str | None = row["asr_flag"]
    text: str | None = row["text"]
    if row["text_source"] != "asr":
        return flag is None
    if flag not in set(AsrFlag) or (row["emotion_null_reason"] == NO_SPEECH and flag != AsrFlag.SILENCE):
        return False
    if settings.texts != "none":  # else all texts are null
        may_be_empty = flag == AsrFlag.SILENCE or (flag == AsrFlag.LOOP and settings.segmentation != "none")
        if text is None or (flag == AsrFlag.SILENCE and text) or (not text and not may_be_empty):
            return False
    logprob: float = row["asr_avg_logprob"] or 0.0
    if flag in (AsrFlag.SILENCE, AsrFlag.LOOP) or abs(logprob - LOW_LOGPROB) <= _NEAR:
        return True
    return (flag == AsrFlag.LOW_CONFIDENCE) is (logprob < LOW_LOGPROB)


def _spelled_well(row: Mapping[str, Any]) -> bool:
    words = row.get(WORDS)
    if words is None:
        return WORDS not in row or row["text_source"] != "asr" or bool(row["text"])
    spelled = "".join("".join(word["word"] for word in words).split())
    begin_s, limit_s = row["start_s"] - _NEAR_S, row["end_s"] + _NEAR_S
    return (
        row["text_source"] == "asr"
        and spelled == "".join(row["text"].split())
        and all(
            begin_s <= word["start_s"] <= word["end_s"] <= limit_s and 0.0 <= word["probability"] <= 1.0 + _NEAR
            for word in words
        )
    )

"""The audit of `asr_flag` and `words`: which rows contradict themselves."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.columns import WORDS, WORDS_TYPE
from pipeline.dataset.verify.transcripts import bad_transcripts
from pipeline.schema import utterance_schema
from tests.support.pins import job_settings

WORD = {"word": "Hello", "start_s": 2.0, "end_s": 2.5, "probability": 0.9}
SURE = {
    "text": "Hello you.", "text_source": "asr", "asr_avg_logprob": -0.2, "asr_flag": "none", "emotion_null_reason": None,
    "start_s": 2.0, "end_s": 4.0, "words": [WORD, {**WORD, "word": "you.", "end_s": 4.0}],
}  # fmt: skip
UNSURE = {**SURE, "asr_avg_logprob": -1.5, "asr_flag": "low_confidence"}
LOOP = {**SURE, "asr_flag": "loop", "asr_avg_logprob": -1.5}
EMPTIED = {**SURE, "text": "", "words": [], "asr_flag": "loop"}
QUIET = {**EMPTIED, "asr_flag": "silence", "asr_avg_logprob": None, "emotion_null_reason": "no_speech"}
TOLD = {**SURE, "text_source": "manifest", "asr_flag": None, "asr_avg_logprob": None, "words": None}
SOUND = [SURE, UNSURE, LOOP, EMPTIED, QUIET, TOLD, {**SURE, "words": None}, {**SURE, "asr_avg_logprob": None}]


def accused(rows: list[dict[str, Any]], *, version: int = 3, **flags: object) -> list[bool]:
    settings = job_settings(**{"words": True, **flags})
    names = [name for name in SURE if name != WORDS]
    fields = [utterance_schema({}, "float32", version=3).field(name).with_nullable(True) for name in names]
    table = pa.Table.from_pylist(rows, pa.schema([*fields, pa.field(WORDS, WORDS_TYPE)]))
    if version < 3:
        settings = settings.of({**settings.document(), "schema_version": version})
    return bad_transcripts(table, settings).tolist()


def test_sound_rows_are_not_accused():
    """Fails if the audit accuses a row that the job writes, with words, without, or in an output of another setting."""
    assert accused(SOUND) == [False] * len(SOUND)
    assert accused(SOUND, words=False) == [False] * len(SOUND)
    whole = [row for row in SOUND if row not in (EMPTIED, QUIET)] + [{**QUIET, "emotion_null_reason": None}]
    assert accused(whole, segmentation="none") == [False] * len(whole)
    assert accused([{**row, "text": None} for row in SOUND], words=False, texts="none") == [False] * len(SOUND)
    assert accused([{**SURE, "asr_flag": None}], version=2) == [False]
    edge = [{**SURE, "asr_avg_logprob": -1.0}, {**UNSURE, "asr_avg_logprob": -1.0}]
    assert accused(edge) == [False, False], "float32 rounds what was compared"


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (SURE, {"asr_flag": "other"}),
        (SURE, {"asr_flag": None}),
        (SURE, {"asr_flag": "silence"}),
        (SURE, {"asr_flag": "low_confidence"}),
        (SURE, {"text": None}),
        (SURE, {"text": "", "words": []}),
        (SURE, {"emotion_null_reason": "no_speech"}),
        (UNSURE, {"asr_flag": "none"}),
        (UNSURE, {"text": "", "words": []}),
        (QUIET, {"asr_flag": "loop"}),
        (TOLD, {"asr_flag": "none"}),
        (TOLD, {"words": SURE["words"]}),
        (SURE, {"words": [WORD]}),
        (SURE, {"words": []}),
        (EMPTIED, {"words": [WORD]}),
        (EMPTIED, {"words": None}),
        (SURE, {"words": [WORD, {**WORD, "word": "you.", "start_s": 0.1}]}),
        (SURE, {"words": [WORD, {**WORD, "word": "you.", "end_s": 4.1}]}),
        (SURE, {"words": [WORD, {**WORD, "word": "you.", "start_s": 2.6}]}),
        (SURE, {"words": [WORD, {**WORD, "word": "you.", "probability": 1.5}]}),
    ],
)
def test_a_row_that_contradicts_itself_is_accused(row, change):
    """Fails if a flag or a word of another text passes."""
    assert accused([row, {**row, **change}]) == [False, True]


def test_an_emptied_loop_without_the_rules_is_accused():
    """Fails if an output whose texts stay as they are may have a loop without a text."""
    assert accused([EMPTIED], segmentation="none") == [True]

"""Output columns that a dataset has only if it was asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.config.further import with_further
from pipeline.config.settings import Settings
from pipeline.schema import Column

if TYPE_CHECKING:
    from pipeline.config.segments import SegmentOptions

WORDS = "words"
"""Column with the times of the transcribed words (`--words`)."""
WORDS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("word", pa.string()),
            pa.field("start_s", pa.float64()),
            pa.field("end_s", pa.float64()),
            pa.field("probability", pa.float32()),
        ]
    )
)
WORDS_DESCRIPTION = Column(
    "s",
    "words of the transcript with their punctuation, in order: `word`, `start_s` and `end_s` in the recording, and "
    "`probability`, Whisper's mean probability of its tokens; together they spell `text`, blanks aside; empty where `text` is",
    "the text is not Whisper's, or has more tokens than Whisper can align (443); column absent without `--words`",
)


SPEAKER_ID = "speaker_id"
"""Column with the speaker of an utterance (`--turns`, `--speakers`)."""
OVERLAP_SHARE = "overlap_share"
"""Column with the share of an utterance in which others talk too (`--turns`)."""
_SPEAKER_COLUMNS = {
    SPEAKER_ID: (
        pa.string(),
        Column(
            "",
            "speaker of the utterance, by `--turns`, or by voice (`--speakers`: S1, S2, ...); a name within its recording",
            "the turns name none, or the row has none; with `--speakers`, it has a text or no speech was found",
        ),
    ),
    OVERLAP_SHARE: (
        pa.float32(),
        Column("0 to 1", "share of the utterance that turns of other speakers cover", "the row has no turns"),
    ),
}


def optional_names(settings: Settings | SegmentOptions) -> tuple[str, ...]:
    """Return the names of output columns that the settings ask for, and that a manifest's column cannot have therefore."""
    if settings.turns:
        return SPEAKER_ID, OVERLAP_SHARE
    return (SPEAKER_ID,) if settings.speakers else ()


def with_optional(schema: pa.Schema, settings: Settings) -> pa.Schema:
    """Return a schema of the output with the columns that the settings ask for."""
    if settings.words:
        field = pa.field(WORDS, WORDS_TYPE, metadata={"description": WORDS_DESCRIPTION.description})
        schema = schema.insert(schema.get_field_index("asr_flag") + 1, field)
    for name in reversed(optional_names(settings)):
        kind, column = _SPEAKER_COLUMNS[name]
        field = pa.field(name, kind, metadata={"description": column.description})
        schema = schema.insert(schema.get_field_index("channel") + 1, field)
    return with_further(schema, settings.also)

"""Output columns that a dataset has only if it was asked for them."""

from __future__ import annotations

import pyarrow as pa

from pipeline.config.further import with_further
from pipeline.config.settings import Settings
from pipeline.schema import Column

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


def with_optional(schema: pa.Schema, settings: Settings) -> pa.Schema:
    """Return a schema of the output with the columns that the settings ask for."""
    if settings.words:
        field = pa.field(WORDS, WORDS_TYPE, metadata={"description": WORDS_DESCRIPTION.description})
        schema = schema.insert(schema.get_field_index("asr_flag") + 1, field)
    return with_further(schema, settings.also)

"""Columns of everything we read and write, and the one emotion vocabulary.

Three tables: `ROW_SCHEMA` (a manifest row once it is read, the unit of the plan), `utterance_schema()` (the output)
and `REJECT_SCHEMA` (the log of what could not be annotated). Manifest columns we do not know pass through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.errors import ConfigError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""One vocabulary for both languages; Spanish models have no surprise, whose score is then null."""

_EMOTION_OF_LABEL = {
    **{emotion: emotion for emotion in EMOTIONS},
    "angry": "anger",
    "happy": "joy",
    "happiness": "joy",
    "sad": "sadness",
    "fearful": "fear",
    "surprised": "surprise",
}

EMBEDDINGS = ("audio_embedding", "text_embedding", "fused_embedding")

ROW_SCHEMA = pa.schema(
    [
        pa.field("recording_id", pa.string(), nullable=False),
        pa.field("audio", pa.string()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("offset_s", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("channel", pa.int32()),
        pa.field("manifest", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
    ]
)
"""A manifest row after reading: absolute audio URI, id given or derived, and where it stood (1-based line or row)."""

REJECT_SCHEMA = pa.schema(
    [
        pa.field("recording_id", pa.string()),
        pa.field("audio", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)

_UTTERANCE_FIELDS = (
    pa.field("utterance_id", pa.string(), nullable=False),
    pa.field("recording_id", pa.string(), nullable=False),
    pa.field("audio", pa.string()),
    pa.field("channel", pa.int32()),
    pa.field("segment_index", pa.int32(), nullable=False),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("duration_s", pa.float64()),
    pa.field("truncated", pa.bool_(), nullable=False),
    pa.field("language", pa.string(), nullable=False),
    pa.field("text", pa.string()),
    pa.field("text_source", pa.string(), nullable=False),
    pa.field("asr_avg_logprob", pa.float32()),
    pa.field("asr_no_speech_prob", pa.float32()),
    pa.field("asr_compression_ratio", pa.float32()),
    pa.field("label", pa.string(), nullable=False),
    pa.field("emotion", pa.string()),
    pa.field("abstained", pa.bool_(), nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),
    pa.field("margin", pa.float32(), nullable=False),
    pa.field("scores", pa.struct([pa.field(e, pa.float32()) for e in EMOTIONS]), nullable=False),
)
_LINEAGE_FIELDS = (pa.field("model", pa.string(), nullable=False), pa.field("run_id", pa.string(), nullable=False))


def emotion_of(label: str) -> str:
    """Map a checkpoint's own label to the shared vocabulary.

    Raises: ConfigError when the label is in no vocabulary we know, so that a model with other classes is refused
    before the job starts instead of writing nulls.
    """
    emotion = _EMOTION_OF_LABEL.get(label.strip().lower())
    if emotion is None:
        raise ConfigError(f"the model's label {label!r} is none of {', '.join(sorted(_EMOTION_OF_LABEL))}")
    return emotion


def utterance_schema(
    embedding_widths: Mapping[str, int], embedding_dtype: str, extra_fields: Iterable[pa.Field] = ()
) -> pa.Schema:
    """The output table.

    Args:
        embedding_widths: the embedding columns to write, each with its width; in `EMBEDDINGS` order.
        embedding_dtype: float32 or float16.
        extra_fields: manifest columns passed through, as named by `passthrough_name`.
    """
    item = pa.field("item", {"float32": pa.float32(), "float16": pa.float16()}[embedding_dtype], nullable=False)
    kept = [name for name in EMBEDDINGS if name in embedding_widths]
    embeddings = [pa.field(name, pa.list_(item, embedding_widths[name])) for name in kept]
    return pa.schema([*_UTTERANCE_FIELDS, *embeddings, *_LINEAGE_FIELDS, *extra_fields])


_OUR_FIELDS = (*_UTTERANCE_FIELDS, *_LINEAGE_FIELDS, *REJECT_SCHEMA, *ROW_SCHEMA)
_SCANNED = ("__filename", "__fragment_index", "__batch_index", "__last_in_fragment")
"""Columns that Arrow's scanner adds; a file that has one by itself cannot be read by pandas or `pyarrow.dataset`."""
_TAKEN = {name.lower() for name in (*(field.name for field in _OUR_FIELDS), *EMBEDDINGS, "raw", *_SCANNED)}


def passthrough_name(column: str) -> str:
    """The output name of a manifest column we do not read: its own, or `manifest_<name>` where ours has that name.

    Names are compared without case because Spark and DuckDB do. Names that Arrow gives to columns of its own count as ours.
    """
    return f"manifest_{column}" if column.lower() in _TAKEN else column


def utterance_id(recording_id: str, segment_index: int) -> str:
    """Unique over a dataset, since recording ids are; the part after the last ``#`` is the segment index."""
    return f"{recording_id}#{segment_index:04d}"

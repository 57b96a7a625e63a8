"""Arrow schemas of all tables, and the emotion vocabulary.

Three tables: `ROW_SCHEMA` (manifest rows after reading, the unit of the plan), `utterance_schema()` (the output) and
`REJECT_SCHEMA` (rows that could not be annotated). Unknown manifest columns pass through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.errors import ConfigError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""Emotion vocabulary of both languages. Spanish models have no surprise; its score is then null."""

_EMOTION_OF_LABEL = {
    **{emotion: emotion for emotion in EMOTIONS},
    "angry": "anger",
    "happy": "joy",
    "happiness": "joy",
    "sad": "sadness",
    "fearful": "fear",
    "surprised": "surprise",
}

OTHER_LANGUAGE = "language"
"""`emotion_null_reason` of an utterance in a language that no model of the run covers."""
CLEAR_PROB = 0.9
"""Probability from which a segment's detected language takes precedence over its recording's."""
ABSTAINED = "abstained"
"""`emotion_null_reason` of an utterance whose confidence is below `min_confidence`."""

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
"""Manifest row after reading: absolute audio URI, given or derived id, and its position (1-based line or row)."""

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
_SINCE_2 = {
    "language": pa.field("language_prob", pa.float32()),
    "emotion": pa.field("emotion_null_reason", pa.string()),
}
"""Columns added by schema version 2, keyed by the column they follow."""
_NULLABLE_SINCE_2 = ("label", "confidence", "margin", "scores", "model")
"""Columns that are null in version 2 when `emotion_null_reason` is `language`."""
_LINEAGE_FIELDS = (pa.field("model", pa.string(), nullable=False), pa.field("run_id", pa.string(), nullable=False))


def emotion_of(label: str) -> str:
    """Map a checkpoint's own label to the shared vocabulary.

    Raises: ConfigError for an unknown label, so that a model with other classes is rejected before the job starts
    instead of producing nulls.
    """
    emotion = _EMOTION_OF_LABEL.get(label.strip().lower())
    if emotion is None:
        raise ConfigError(f"the model's label {label!r} is unknown; known are {', '.join(sorted(_EMOTION_OF_LABEL))}")
    return emotion


def utterance_schema(
    embedding_widths: Mapping[str, int], embedding_dtype: str, extra_fields: Iterable[pa.Field] = (), *, version: int
) -> pa.Schema:
    """Return the schema of the output table.

    Args:
        embedding_widths: width of each embedding column to write; the columns come in `EMBEDDINGS` order.
        embedding_dtype: float32 or float16.
        extra_fields: pass-through manifest columns, named by `passthrough_name`.
        version: `schema_version` of the dataset.
    """
    item = pa.field("item", {"float32": pa.float32(), "float16": pa.float16()}[embedding_dtype], nullable=version > 1)
    kept = [name for name in EMBEDDINGS if name in embedding_widths]
    embeddings = [pa.field(name, pa.list_(item, embedding_widths[name])) for name in kept]
    ours = [*_UTTERANCE_FIELDS, *embeddings, *_LINEAGE_FIELDS]
    if version > 1:
        ours = [field.with_nullable(field.nullable or field.name in _NULLABLE_SINCE_2) for field in ours]
        ours = [each for field in ours for each in (field, _SINCE_2.get(field.name)) if each is not None]
    return pa.schema([*ours, *extra_fields])


_OUR_FIELDS = (*_UTTERANCE_FIELDS, *_LINEAGE_FIELDS, *REJECT_SCHEMA, *ROW_SCHEMA)
_SCANNED = ("__filename", "__fragment_index", "__batch_index", "__last_in_fragment")
"""Columns added by Arrow's scanner; pandas and `pyarrow.dataset` cannot read a file that contains one."""
_TAKEN = {name.lower() for name in (*(field.name for field in _OUR_FIELDS), *EMBEDDINGS, "raw", *_SCANNED)}
_TAKEN_SINCE_2 = {field.name for field in _SINCE_2.values()}


def passthrough_name(column: str, version: int = 1) -> str:
    """Return the output name of a pass-through column: its own, or `manifest_<name>` if that name is reserved.

    The names of output columns and of Arrow's scanner columns are reserved. The comparison ignores case, as Spark and
    DuckDB do. Manifests are read with the names of version 1; `rename_passthrough` converts them to a later version.
    """
    taken = column.lower() in _TAKEN or (version > 1 and column.lower() in _TAKEN_SINCE_2)
    return f"manifest_{column}" if taken else column


def rename_passthrough(rows: pa.Table, version: int) -> pa.Table:
    """Rename pass-through columns whose names a schema version reserves.

    Raises: ConfigError when two columns would get the same name.
    """
    names = [name if name in ROW_SCHEMA.names else passthrough_name(name, version) for name in rows.schema.names]
    lower = [name.lower() for name in names]
    for old, new in zip(rows.schema.names, names, strict=True):
        if old != new and lower.count(new.lower()) > 1:
            raise ConfigError(
                f"columns {old!r} and {new!r} of the manifest would become one column in the output; rename one of them"
            )
    return rows.rename_columns(names)


def utterance_id(recording_id: str, segment_index: int) -> str:
    """Return an id that is unique in a dataset, as recording ids are. The segment index follows the last ``#``."""
    return f"{recording_id}#{segment_index:04d}"

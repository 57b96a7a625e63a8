"""Arrow schemas of all tables, the descriptions of their columns, and the emotion vocabulary.

Three tables: `ROW_SCHEMA` (manifest rows after reading, the unit of the plan), `utterance_schema()` (the output) and
`REJECT_SCHEMA` (rows that could not be annotated). Unknown manifest columns pass through all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

import pyarrow as pa

from pipeline.errors import ConfigError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""Emotion vocabulary of both languages. Spanish models have no surprise; its score is then null."""

VOCABULARY = {
    **{emotion: emotion for emotion in EMOTIONS},
    "angry": "anger",
    "happy": "joy",
    "happiness": "joy",
    "sad": "sadness",
    "fearful": "fear",
    "surprised": "surprise",
}
"""Emotion of each label that models of schema versions 1 and 2 may have."""

DIMENSIONS = ("arousal", "valence", "dominance")
"""Dimensions of emotion that regression heads predict; each has a column from schema version 3."""

OTHER_LANGUAGE = "language"
"""`emotion_null_reason` of an utterance in a language that no model of the run covers."""
NO_SPEECH = "no_speech"
"""`emotion_null_reason` of a clip without a text in which voice activity detection finds no voice."""
CLEAR_PROB = 0.9
"""Probability from which a segment's detected language takes precedence over its recording's."""
ABSTAINED = "abstained"
"""`emotion_null_reason` of an utterance whose confidence is below `min_confidence`."""
UNMAPPED = "unmapped"
"""`emotion_null_reason` of an utterance whose label no emotion is mapped to."""
REGRESSION = "regression"
"""`emotion_null_reason` of an utterance whose model has no classes."""
NULL_REASONS = (UNMAPPED, OTHER_LANGUAGE, NO_SPEECH, ABSTAINED, REGRESSION)
"""Values of `emotion_null_reason`."""
LOW_LOGPROB = -1.0
"""`asr_avg_logprob` below which a text is doubtful. Source: Radford et al. 2022, section 4.5."""


class AsrFlag(StrEnum):
    """Values of `asr_flag`."""

    NONE = "none"
    SILENCE = "silence"
    LOOP = "loop"
    LOW_CONFIDENCE = "low_confidence"


THRESHOLD = 0.5
"""Score above which a label of a model with independent labels is in `labels`."""

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
_ADDED = (
    (3, "truncated", pa.field("loudness_dbfs", pa.float32())),
    (3, "loudness_dbfs", pa.field("clipped_share", pa.float32())),
    (3, "clipped_share", pa.field("snr_db", pa.float32())),
    (3, "snr_db", pa.field("bandwidth_hz", pa.float32())),
    (3, "bandwidth_hz", pa.field("speech_share", pa.float32())),
    (2, "language", pa.field("language_prob", pa.float32())),
    (2, "emotion", pa.field("emotion_null_reason", pa.string())),
    (3, "asr_compression_ratio", pa.field("asr_flag", pa.string())),
    (3, "label", pa.field("label_scores", pa.map_(pa.string(), pa.float32()))),
    (3, "label_scores", pa.field("labels", pa.list_(pa.string()))),
    (3, "scores", pa.field("arousal", pa.float32())),
    (3, "arousal", pa.field("valence", pa.float32())),
    (3, "valence", pa.field("dominance", pa.float32())),
)
"""Columns added after schema version 1: the version, the column they follow, and the field."""
_NULLABLE_SINCE_2 = ("label", "confidence", "margin", "scores", "model")
"""Columns that may be null from version 2: without a model for the language; from version 3 also without classes or speech."""
_LINEAGE_FIELDS = (pa.field("model", pa.string(), nullable=False), pa.field("run_id", pa.string(), nullable=False))


class Column(NamedTuple):
    """Description of an output column, in docs/columns.md and in the metadata of its Arrow field."""

    unit: str
    meaning: str
    null: str = "never"

    @property
    def description(self) -> str:
        """Return the description as one text."""
        return f"{self.meaning}. {f'Unit: {self.unit}. ' if self.unit else ''}Null: {self.null}."


_UNMEASURED = "the audio was not decoded, or `--no-sound-quality`"
_NO_LABEL = "`emotion_null_reason` is `language` (from schema version 2), `no_speech` or `regression`"

UTTERANCE_COLUMNS = {
    "utterance_id": Column("", "`<recording_id>#<segment_index>` with four digits; unique in the dataset"),
    "recording_id": Column("", "`id` of the manifest row, or derived from audio, span and channel"),
    "audio": Column("", "absolute path or URI of the recording, without the query of a URL", "the row has only text"),
    "channel": Column("from 0", "channel of the recording", "the mean of all channels was used"),
    "segment_index": Column("from 0", "position of the utterance in its row"),
    "start_s": Column("s", "start of the utterance in the recording; without decoding, the row's offset or 0"),
    "end_s": Column(
        "s", "end of the utterance in the recording", "the audio was not decoded and the row has no duration"
    ),
    "duration_s": Column("s", "`end_s - start_s`", "as `end_s`"),
    "truncated": Column("", "the model used only the first 160 s of the audio or 512 tokens of the text"),
    "loudness_dbfs": Column(
        "dB",
        "root mean square relative to full scale; a sine of full scale has -3",
        f"{_UNMEASURED}, or digital silence",
    ),
    "clipped_share": Column("0 to 1", "share of samples of at least 0.98 of full scale", _UNMEASURED),
    "snr_db": Column(
        "dB",
        "signal-to-noise ratio: mean power against the noise's, which is the tenth percentile of the powers of 32 ms frames; "
        "too low where less than a tenth of the time is pauses; -20 to 100",
        "as `loudness_dbfs`, or less than 0.32 s",
    ),
    "bandwidth_hz": Column(
        "Hz",
        "highest frequency within 60 dB of the strongest, at most 8000; about 4000 for telephone audio in any file",
        "as `loudness_dbfs`",
    ),
    "speech_share": Column(
        "0 to 1", "share of the 32 ms windows that may contain speech, by voice activity detection", _UNMEASURED
    ),
    "language": Column("BCP-47", "language of the row, of `--language`, or detected"),
    "language_prob": Column(
        "0 to 1",
        "Whisper's probability that the utterance is in `language`; low for a segment that follows its recording",
        "the language was given, or nobody speaks",
    ),
    "text": Column(
        "",
        "transcript, or the manifest's text; empty where nobody speaks; with `--texts hash` the SHA-256 of a text that is "
        "not empty",
        "mode `audio`, and the manifest has no text; or `--texts none`",
    ),
    "text_source": Column("", "`manifest`, `asr` or `none`"),
    "asr_avg_logprob": Column(
        "nats",
        "Whisper's average log-probability of a token, weighted over its segments",
        "the text is not Whisper's, or voice activity detection found no speech",
    ),
    "asr_no_speech_prob": Column(
        "0 to 1", "Whisper's probability that there is no speech; the largest of its segments", "as `asr_avg_logprob`"
    ),
    "asr_compression_ratio": Column(
        "ratio", "length of the text over its compressed length; over 2.4 suggests repetition", "as `asr_avg_logprob`"
    ),
    "asr_flag": Column(
        "",
        "`none`; `silence`, the text was emptied because nobody seems to speak; `loop`, repetitions were cut; or "
        "`low_confidence`, the average log-probability is under -1.0; with `--segmentation none` texts are kept",
        "the text is not Whisper's",
    ),
    "label": Column("", "class with the highest score, in the model's own word", _NO_LABEL),
    "label_scores": Column(
        "0 to 1",
        "score of each class of the model, by its own word; with softmax they add up to 1, with sigmoid each is independent",
        "as `label`",
    ),
    "labels": Column(
        "", f"classes with a score above {THRESHOLD}", "the model's classes are not independent (softmax)"
    ),
    "emotion": Column(
        "",
        f"the label in one vocabulary ({', '.join(EMOTIONS)}), by the built-in map of labels and `--label-map`",
        "`emotion_null_reason` says why",
    ),
    "emotion_null_reason": Column(
        "",
        "`language` (no model for it), `abstained`, `unmapped` (no emotion for the label), `regression` (a model without "
        "classes) or `no_speech` (a clip of up to 30 s without a text, in which nobody speaks)",
        "there is an emotion",
    ),
    "abstained": Column("", "`confidence` is below `--min-confidence`"),
    "confidence": Column("0 to 1", "largest of `label_scores`", "as `label`"),
    "margin": Column(
        "0 to 1", "largest of `label_scores` minus the second largest; of a single class, its score", "as `label`"
    ),
    "scores": Column(
        "0 to 1",
        "sum of `label_scores` over the labels of each emotion, a float field for each; they add up to 1 where the model "
        "uses softmax and every label has an emotion",
        "as `label`; a field for an emotion that no label of the model has, such as `surprise` in Spanish models",
    ),
    "arousal": Column(
        "0 to 1",
        "arousal that a regression head predicts; a stated scale of the model, which the field's metadata then names, is "
        "mapped to 0 to 1, and predictions beyond its ends stay beyond them",
        "the model has no such output",
    ),
    "valence": Column("0 to 1", "valence, likewise", "as `arousal`"),
    "dominance": Column("0 to 1", "dominance, likewise", "as `arousal`"),
    "audio_embedding": Column(
        "",
        "embedding of the voice; float or halffloat values (`--embedding-dtype`)",
        "as `model`; column absent in mode `text` or without `--embeddings audio`",
    ),
    "text_embedding": Column(
        "", "embedding of the words", "as `model`; column absent in mode `audio` or without `--embeddings text`"
    ),
    "fused_embedding": Column(
        "",
        "embedding that the classifier gets",
        "as `model`; column absent in mode `text` or without `--embeddings fused`",
    ),
    "model": Column(
        "",
        "mode, language, first 12 digits of the weights' SHA-256 (with `+`, of the sentence encoder's), precision, and "
        "`/T=` with the temperature of a calibration",
        "`emotion_null_reason` is `language` (from schema version 2) or `no_speech`",
    ),
    "run_id": Column("", "number of the run, such as `000001`"),
}
"""Columns of `utterances/`, except the manifest's own."""

_AS_TEXT = "as `text`"

REJECT_COLUMNS = {
    "recording_id": Column(
        "", "`id` of the manifest row, or derived as in `utterances/`", "the line could not be read"
    ),
    "audio": Column(
        "",
        "absolute path or URI of the recording, without the query of a URL",
        "the line could not be read, or has no audio",
    ),
    "reason": Column("", "one of a closed list, which docs/runbook.md explains"),
    "detail": Column("", "a sentence"),
    "stage": Column("", "`manifest`, `fetch`, `decode`, `segment`, `transcribe`, `recognise` or `commit`"),
    "manifest": Column("", "the manifest's path or URI"),
    "line": Column("from 1", "line of a text manifest, row of a Parquet one"),
    "attempts": Column("", "number of times the row was tried"),
    "run_id": Column("", "number of the run"),
    "text": Column("", "the manifest's `text`", "the row has none, or could not be read; or `--texts`"),
    "language": Column("BCP-47", "the manifest's `language`", _AS_TEXT),
    "offset_s": Column("s", "the manifest's `offset`", _AS_TEXT),
    "duration_s": Column("s", "the manifest's `duration`", _AS_TEXT),
    "channel": Column("from 0", "the manifest's `channel`", _AS_TEXT),
    "raw": Column(
        "",
        "the line as it was (Parquet: as JSON), or the values that do not fit, at most 2,048 characters; with `--texts none` "
        "or `hash` the SHA-256 of this",
        "the row was read",
    ),
}
"""Columns of `rejects/`, except the manifest's own."""


def described(fields: Iterable[pa.Field], columns: Mapping[str, Column]) -> list[pa.Field]:
    """Return the fields with their descriptions as metadata, which Parquet files keep and comparisons ignore."""
    return [
        field.with_metadata({"description": columns[field.name].description}) if field.name in columns else field
        for field in fields
    ]


def emotion_of(label: str) -> str:
    """Map a checkpoint's own label to the shared vocabulary.

    Raises: ConfigError for an unknown label, so that a model with other classes is rejected before the job starts
    instead of producing nulls.
    """
    emotion = VOCABULARY.get(label.strip().lower())
    if emotion is None:
        raise ConfigError(f"the model's label {label!r} is unknown; known are {', '.join(sorted(VOCABULARY))}")
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
    for since, after, field in _ADDED:
        if version >= since:
            ours.insert([each.name for each in ours].index(after) + 1, field)
    return pa.schema([*described(ours, UTTERANCE_COLUMNS), *extra_fields])


_OUR_FIELDS = (*_UTTERANCE_FIELDS, *_LINEAGE_FIELDS, *REJECT_SCHEMA, *ROW_SCHEMA)
_SCANNED = ("__filename", "__fragment_index", "__batch_index", "__last_in_fragment")
"""Columns added by Arrow's scanner; pandas and `pyarrow.dataset` cannot read a file that contains one."""
_TAKEN = {name.lower() for name in (*(field.name for field in _OUR_FIELDS), *EMBEDDINGS, "raw", *_SCANNED)}
_TAKEN_SINCE = {field.name: since for since, _, field in _ADDED} | {"by_model": 3, "words": 3}


def passthrough_name(column: str, version: int = 1, reserved: Collection[str] = ()) -> str:
    """Return the output name of a pass-through column: its own, or `manifest_<name>` if that name is reserved.

    The names of output columns and of Arrow's scanner columns are reserved. The comparison ignores case, as Spark and
    DuckDB do. Manifests are read with the names of version 1; `rename_passthrough` converts them to a later version.
    """
    taken = column.lower() in (*_TAKEN, *reserved) or version >= _TAKEN_SINCE.get(column.lower(), version + 1)
    return f"manifest_{column}" if taken else column


def rename_passthrough(rows: pa.Table, version: int, reserved: Collection[str] = ()) -> pa.Table:
    """Rename pass-through columns whose names a schema version reserves.

    Args:
        reserved: further names of output columns.
    Raises: ConfigError when two columns would get the same name.
    """
    names = [
        name if name in ROW_SCHEMA.names else passthrough_name(name, version, reserved) for name in rows.schema.names
    ]
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

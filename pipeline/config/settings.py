"""Settings that determine the rows of a dataset. All plans of a dataset share them.

Their JSON form is part of `_dataset.json`, `plan.json` and the configuration hash in every receipt. Optional settings
are omitted from it unless they are set, so the JSON of datasets made before a setting existed stays the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Strict, TypeAdapter

from pipeline import MAX_SEGMENT_S
from pipeline.errors import ConfigError

Mode = Literal["mean", "concat", "multihead", "audio", "text"]
Segmentation = Literal["auto", "none", "vad"]
Channels = Literal["mix", "split", "auto"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
EmbeddingDtype = Literal["float32", "float16"]
AsrWindow = Literal["full", "short"]
Texts = Literal["keep", "none", "hash"]
SCHEMA_VERSION = 3
"""Schema version of new datasets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options chosen by the user, except models and manifests, with every `auto` resolved.

    Attributes:
        calibration: temperature by model fingerprint; None without a calibration.
        label_map: the user's emotions of labels by language; None without a map.
        also: names of the further models, sorted; their results are in `by_model`.
        max_segment_s, min_segment_s: bounds of utterances that are cut at pauses.
        window_s, hop_s: length of the windows into which recordings are cut instead, and time between their starts; a hop of
            None is the length.
        channels: use of the channels of rows without one.
        turns: manifest column with the turns of speakers, which the output does not have; None for no such column.
        speakers: recordings are cut where the speaker changes.
        min_confidence: confidence below which the emotion of an utterance is null; None for no limit.
        allowed_languages: primary tags that `--language auto` may choose from, sorted; empty for all
            languages that have a model.
        words: whether the dataset has the column `words`.
        asr_window: audio that Whisper's encoder processes for an utterance; "full" for datasets made before this
            setting existed.
        sound_quality: the sound of utterances is measured; False for datasets made before this setting existed.
        texts: what is written of transcripts and the manifest's texts; "hash" is the SHA-256 of a text.
        schema_version: version of the dataset's columns; 1 for datasets made before this setting existed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    mode: Mode
    language: str | None
    segmentation: Segmentation
    partition_by: tuple[str, ...]
    embeddings: tuple[str, ...]
    embedding_dtype: EmbeddingDtype
    beam_size: int
    max_duration_s: float
    max_bytes: int
    calibration: Mapping[str, float] | None = None
    label_map: Mapping[str, Mapping[str, str | None]] | None = None
    also: tuple[str, ...] = ()
    max_segment_s: float = MAX_SEGMENT_S
    min_segment_s: float = 0.0
    window_s: float | None = None
    hop_s: float | None = None
    channels: Channels = "mix"
    turns: str | None = None
    speakers: Annotated[bool, Strict()] = False
    min_confidence: float | None = None
    words: Annotated[bool, Strict()] = False
    allowed_languages: tuple[str, ...] = ()
    texts: Texts = "keep"
    schema_version: Annotated[int, Strict()] = 1
    precision: Precision
    asr_compute_type: str
    asr_window: AsrWindow = "full"
    sound_quality: bool = False

    def document(self) -> dict[str, Any]:
        """Return the JSON form, with optional settings only where they are set."""
        document: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                document[field.name] = list(value) if isinstance(value, tuple) else value
        return document

    @classmethod
    def of(cls, document: object) -> Settings:
        """Read the JSON form. Raises: ValueError naming a setting that is missing, unknown or of the wrong type."""
        settings = _ADAPTER.validate_python(document)
        if settings.schema_version not in range(1, SCHEMA_VERSION + 1):
            raise ValueError(
                f"the dataset has schema_version {settings.schema_version}; this program knows 1 to {SCHEMA_VERSION}: update it"
            )
        return settings


def require_precision(precision: str, *, mode: str, device: str) -> None:
    """Check a precision. Raises: ConfigError if it is unknown, or not available for this mode or device."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "int8" and (mode == "text" or device != "cpu"):
        raise ConfigError(
            f"--precision int8 is for the audio encoder on CPU, not for mode {mode} on {device}; use bf16 or fp16 on GPUs"
        )


_ADAPTER = TypeAdapter(Settings)


def canonical_hash(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of a value, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

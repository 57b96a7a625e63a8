"""One frozen, validated description of a job, from flags and a file.

`JobConfig` is what the user asked for. `settings` returns the part of it that decides the rows of a dataset.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError, did_you_mean
from pipeline.schema import EMBEDDINGS, passthrough_name, utterance_schema
from pipeline.settings import SCHEMA_VERSION, EmbeddingDtype, Mode, Precision, Segmentation, Settings

MODEL_OPTIONS = ("fusion_model", "sentence_encoder", "asr_model")
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_PRIMARY_TAG = re.compile(r"[a-z]{2,3}")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
AUTO_LANGUAGE = "auto"
"""`--language` that leaves rows without a language to Whisper."""
ANY_LANGUAGE = "*"
"""Key of a model that was named without a language."""


_Choice = TypeVar("_Choice", bound="ModelChoice")


class ModelChoice(BaseModel):
    """Which models somebody asked for; `pipeline.models.roles` settles the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "mean"
    language: str | None = None
    fusion_model: Mapping[str, str] = Field(default_factory=dict)
    sentence_encoder: Mapping[str, str] = Field(default_factory=dict)
    asr_model: Mapping[str, str] = Field(default_factory=dict)

    @field_validator(*MODEL_OPTIONS, mode="before")
    @classmethod
    def _per_language(cls, value: object) -> object:
        """Accept `X`, `lang=X`, a list of those, or a mapping of languages."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            pairs = [(primary_language(str(language).strip()), model) for language, model in value.items()]
        else:
            pairs = list(map(_named_model, [value] if isinstance(value, str) else list(_strings(value))))
        named: dict[str, object] = {}
        for key, model in pairs:
            if model == "":
                raise ValueError(f"names no model{'' if key == ANY_LANGUAGE else f' for {key}'}")
            if key in named:
                raise ValueError(f"names two models for {'every language' if key == ANY_LANGUAGE else key}")
            named[key] = model
        return named

    @field_validator("language")
    @classmethod
    def _language_tag(cls, value: str | None) -> str | None:
        if value is not None and not value.replace("-", "").isalnum():
            raise ValueError(f"{value!r} is not a language code such as en or es")
        return value

    @model_validator(mode="after")
    def _whose_model(self) -> Self:
        for option in ("fusion_model", "sentence_encoder"):
            if self.language == AUTO_LANGUAGE and ANY_LANGUAGE in getattr(self, option):
                flag = "--" + option.replace("_", "-")
                raise ValueError(
                    f"{flag}: with --language auto say which language each model is for, as in {flag} en=X es=Y"
                )
        return self

    def model_for(self, option: str, language: str) -> str | None:
        """The model named for `language` under one of `MODEL_OPTIONS`, or None for the published one.

        A fusion model or sentence encoder named without a language is for `--language` (or en); an ASR model named
        so is for every language, since Whisper is multilingual.
        """
        named: Mapping[str, str] = getattr(self, option)
        if language in named:
            return named[language]
        if option == "asr_model" or language == primary_language(self.language or "en"):
            return named.get(ANY_LANGUAGE)
        return None


class JobConfig(ModelChoice):
    """What one `annotate` job shall do. Every field is a flag of the same name and a key of the config file."""

    manifest: tuple[str, ...] = Field(min_length=1)
    output: str = Field(min_length=1)
    models: str | None = Field(default=None, min_length=1)
    allowed_languages: tuple[str, ...] = ()
    segmentation: Segmentation = "auto"
    partition_by: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = EMBEDDINGS
    embedding_dtype: EmbeddingDtype = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    asr_compute_type: str = "auto"
    beam_size: int = Field(default=1, ge=1, le=20)
    calibration: Mapping[str, float] = Field(default_factory=dict)
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    audio_root: tuple[str, ...] = ()
    max_duration_s: float = Field(default=4 * 3600.0, gt=0)
    max_bytes: int = Field(default=2 * 2**30, gt=0)
    shard_rows: int | None = Field(default=None, ge=1)
    shard_audio_s: float | None = Field(default=None, gt=0)
    asr_actors: int | None = Field(default=None, ge=1)
    emotion_actors: int | None = Field(default=None, ge=1)
    asr_gpus: float | None = Field(default=None, gt=0)
    emotion_gpus: float | None = Field(default=None, gt=0)
    max_batch_s: float | None = Field(default=None, gt=0)
    wait_for_workers_s: float = Field(default=3600.0, ge=0)
    max_reject_rate: float | None = Field(default=None, ge=0, le=1)
    give_up: tuple[str, ...] = ()
    no_page: bool = False
    dry_run: bool = False

    @field_validator("allowed_languages", mode="before")
    @classmethod
    def _primary_tags(cls, value: object) -> object:
        """Accept `en,es` or a list."""
        tags = (
            value.split(",") if isinstance(value, str) else [tag for item in _strings(value) for tag in item.split(",")]
        )
        tags = [tag.strip().lower() for tag in tags if tag.strip()]
        for tag in tags:
            if not _PRIMARY_TAG.fullmatch(tag):
                raise ValueError(f"{tag!r} is not a primary language tag of two or three letters, such as en or es")
        if len(set(tags)) != len(tags):
            raise ValueError("names a language twice")
        if not tags:
            raise ValueError("names no language")
        return tuple(tags)

    @model_validator(mode="after")
    def _allowed_only_with_auto(self) -> Self:
        if self.allowed_languages and self.language != AUTO_LANGUAGE:
            raise ValueError("--allowed-languages limits what --language auto may detect; add --language auto")
        return self

    @field_validator("manifest", "audio_root", "partition_by", "give_up", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("calibration", mode="before")
    @classmethod
    def _temperatures(cls, value: object) -> object:
        """Accept the file that `jobs.evaluate --fit-calibration` wrote, or temperatures by model fingerprint."""
        return read_temperatures(value) if isinstance(value, str) else value

    @field_validator("give_up")
    @classmethod
    def _run_numbers(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        for run in runs:
            if not (run.isascii() and run.isdigit() and int(run)):
                raise ValueError(f"{run!r} is no run number such as 000007")
        return tuple(dict.fromkeys(f"{int(run):06d}" for run in runs))

    @field_validator("partition_by")
    @classmethod
    def _no_model_outputs(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        columns = tuple(name.strip() for column in columns for name in column.split(",") if name.strip())
        # names of version 1: a dataset of a later version has others besides, which the driver refuses
        ours = set(utterance_schema(dict.fromkeys(EMBEDDINGS, 1), "float32", version=1).names) - {"language"}
        for column in columns:
            if not _FOLDER_NAME.fullmatch(column):
                raise ValueError(
                    f"cannot partition by {column!r}: every reader understands folder names of letters, digits, _ and -, "
                    "a letter or digit first; rename the column in the manifest"
                )
            if column in ours:
                raise ValueError(
                    f"cannot partition by {column!r}: it is an output of this job. A retried shard whose model output "
                    "differs on another machine would leave one row in two partitions. Partition by manifest columns or "
                    f"language; filters on {column!r} are served by Parquet statistics. A manifest's own column of this "
                    f"name is written as {passthrough_name(column)!r}"
                )
        if len(set(columns)) != len(columns):
            raise ValueError("names a column twice")
        return columns

    @field_validator("embeddings", mode="before")
    @classmethod
    def _embedding_names(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else list(_strings(value))
        names = [name.strip() for name in names if name.strip()]
        if names == ["all"]:
            return EMBEDDINGS
        if names == ["none"]:
            return ()
        full = {name if name.endswith("_embedding") else f"{name}_embedding" for name in names}
        for name in sorted(full - set(EMBEDDINGS)):
            raise ValueError(
                f"unknown embedding {name!r}{did_you_mean(name, EMBEDDINGS)}; known: all, none, {', '.join(EMBEDDINGS)}"
            )
        return tuple(name for name in EMBEDDINGS if name in full)

    @model_validator(mode="after")
    def _known_precision(self) -> Self:
        if self.precision != "auto":
            require_precision(self.precision, mode=self.mode, device="cuda" if self.device == "cuda" else "cpu")
        return self

    def settings(self, *, precision: Precision, asr_compute_type: str, version: int = SCHEMA_VERSION) -> Settings:
        """Return what decides the rows of a dataset, apart from its models and manifests, with `auto` resolved.

        Args:
            version: of the columns: that of an existing dataset, else the newest.
        """
        return Settings(
            mode=self.mode,
            language=self.language,
            segmentation=self.segmentation,
            partition_by=self.partition_by,
            embeddings=self.embeddings,
            embedding_dtype=self.embedding_dtype,
            beam_size=self.beam_size,
            max_duration_s=self.max_duration_s,
            max_bytes=self.max_bytes,
            calibration=dict(self.calibration) or None,
            min_confidence=self.min_confidence,
            allowed_languages=tuple(sorted(self.allowed_languages)),
            schema_version=version,
            precision=precision,
            asr_compute_type=asr_compute_type,
        )


def require_precision(precision: str, *, mode: str, device: str) -> None:
    """Raises: ConfigError for a precision that is none, or that this mode or device has not."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "int8" and (mode == "text" or device != "cpu"):
        raise ConfigError(
            f"--precision int8 is for the audio encoder on CPU, not for mode {mode} on {device}; use bf16 or fp16 on GPUs"
        )


def read_temperatures(file: str) -> dict[str, float]:
    """Temperatures by model fingerprint, from a calibration file. Raises: ValueError saying what is wrong with it."""
    # imported late: few jobs need it, and it costs half a second
    from pipeline.storage.store import read_text

    try:
        document = json.loads(read_text(file))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    try:
        if document["format"] != 1 or document["method"] != "temperature":
            raise ValueError(
                f"{file} holds format {document['format']!r}, method {document['method']!r}, not 1 and 'temperature'"
            )
        found = {str(model): float(entry["temperature"]) for model, entry in document["models"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no calibration as jobs.evaluate --fit-calibration writes it") from error
    if not found or not all(math.isfinite(temperature) and temperature > 0 for temperature in found.values()):
        raise ValueError(f"{file} holds no temperatures, or such as are not above 0")
    return found


def primary_language(tag: str) -> str:
    """The language of a BCP-47 tag, which picks the model: en-GB -> en."""
    return tag.split("-", maxsplit=1)[0].lower()


def load_config(file: str | None, flags: Mapping[str, object]) -> JobConfig:
    """Merge a YAML or TOML file with flags, which win, and validate both.

    Raises: ConfigError naming the key, the fault and the nearest known key.
    """
    merged = {**(_flatten(_read_file(file), file) if file else {}), **flags}
    return validated(JobConfig, merged)


def validated(kind: type[_Choice], options: Mapping[str, object]) -> _Choice:
    """A `JobConfig` or `ModelChoice` of these options. Raises: ConfigError naming every option that is wrong, and how."""
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error))) from error


def _sentences(error: ValidationError) -> Iterable[str]:
    for fault in error.errors():
        if not fault["loc"]:
            yield fault["msg"].removeprefix("Value error, ")
            continue
        option = "--" + str(fault["loc"][0]).replace("_", "-")
        if fault["type"] == "missing":
            yield f"{option} is required"
        else:
            yield f"{option}: {fault['msg'].removeprefix('Value error, ')}"


def _read_file(file: str) -> Mapping[str, object]:
    from pipeline.storage.store import read_text

    try:
        content = read_text(file)
        parsed = tomllib.loads(content) if file.lower().endswith(".toml") else yaml.safe_load(content)
    except ConfigError as error:
        raise ConfigError(f"--config: {error}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    if not isinstance(parsed, Mapping):
        raise ConfigError(f"--config {file}: expected a mapping of options, found {type(parsed).__name__}")
    return parsed


def _flatten(tree: Mapping[str, object], file: str | None, prefix: str = "") -> dict[str, object]:
    """Nested keys join with `_`: `asr: {model: X}` is `asr_model: X`. Languages below a model option stay a mapping."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = prefix + str(key).replace("-", "_")
        if name in JobConfig.model_fields:
            flat[name] = value
        elif isinstance(value, Mapping) and any(known.startswith(name + "_") for known in JobConfig.model_fields):
            flat.update(_flatten(value, file, name + "_"))
        else:
            known = [known for known in JobConfig.model_fields if known.startswith(prefix)]
            raise ConfigError(f"--config {file}: unknown key {name!r}{did_you_mean(name, known)}")
    return flat


def _named_model(text: str) -> tuple[str, str]:
    """`lang=X` or `X`, which may hold an equals sign of its own."""
    language, equals, model = text.partition("=")
    if equals and _LANGUAGE_TAG.fullmatch(language.strip()):
        return primary_language(language.strip()), model
    return ANY_LANGUAGE, text


def _strings(value: object) -> Iterable[str]:
    if not isinstance(value, Iterable) or any(not isinstance(item, str) for item in value):
        raise ValueError(f"expected text or a list of texts, got {value!r}")
    return value

"""Options that select models, and the validation of configuration models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.config.labels import ANY_LANGUAGE, LANGUAGE_TAG
from pipeline.config.option import MODELS, Option
from pipeline.config.settings import Mode
from pipeline.errors import ConfigError

MODEL_OPTIONS = ("emotion_model", "sentence_encoder", "asr_model")
AUTO_LANGUAGE = "auto"
"""Value of `--language` with which Whisper detects the language of rows that have none."""

_Choice = TypeVar("_Choice", bound="ModelChoice")

RENAMED = {"fusion_model": "emotion_model"}
"""Former names of options, which command lines and config files still accept."""


class ModelChoice(BaseModel):
    """Options that select models; `pipeline.models.roles` adds the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Annotated[Mode, Option(MODELS, "how voice and words are combined; audio and text use one of them alone")] = (
        "mean"
    )
    language: Annotated[
        str | None,
        Option(
            MODELS,
            "language of every row; auto detects it for rows that have none (default: the row's own, else en)",
            metavar="CODE",
        ),
    ] = None
    emotion_model: Annotated[
        Mapping[str, str],
        Option(MODELS, "emotion model (default: the published one for language and mode)", metavar="[LANG=]X"),
    ] = Field(default_factory=dict)
    sentence_encoder: Annotated[
        Mapping[str, str],
        Option(
            MODELS,
            "text encoder of the fusion modes (default: the published BERT of the language)",
            metavar="[LANG=]X",
        ),
    ] = Field(default_factory=dict)
    asr_model: Annotated[
        Mapping[str, str],
        Option(
            MODELS,
            "faster-whisper model; a Whisper in Hugging Face form, which is converted once; or onnx:DIR[@int8], a model for "
            "onnx-asr (default: large-v3-turbo)",
            metavar="[LANG=]X",
        ),
    ] = Field(default_factory=dict)

    @field_validator(*MODEL_OPTIONS, mode="before")
    @classmethod
    def _per_language(cls, value: object) -> object:
        """Accept `X`, `lang=X`, a list of those, or a mapping of languages."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            pairs = [(primary_language(str(language).strip()), model) for language, model in value.items()]
        else:
            pairs = list(map(_named_model, [value] if isinstance(value, str) else list(strings(value))))
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
        for option in ("emotion_model", "sentence_encoder"):
            if self.language == AUTO_LANGUAGE and ANY_LANGUAGE in getattr(self, option):
                flag = "--" + option.replace("_", "-")
                raise ValueError(
                    f"{flag}: with --language auto say which language each model is for, as in {flag} en=X es=Y"
                )
        return self

    def model_for(self, option: str, language: str) -> str | None:
        """Return the model given for `language` under one of `MODEL_OPTIONS`, or None for the published model.

        An emotion model or sentence encoder given without a language applies to `--language` (or en). An ASR model
        given without a language applies to every language, because Whisper is multilingual.
        """
        named: Mapping[str, str] = getattr(self, option)
        if language in named:
            return named[language]
        if option == "asr_model" or language == primary_language(self.language or "en"):
            return named.get(ANY_LANGUAGE)
        return None


def primary_language(tag: str) -> str:
    """Return the primary language of a BCP-47 tag, which selects the model: en-GB -> en."""
    return tag.split("-", maxsplit=1)[0].lower()


def validated(kind: type[_Choice], options: Mapping[str, object]) -> _Choice:
    """Return a validated `JobConfig` or `ModelChoice`. Raises: ConfigError describing every invalid option."""
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


def _named_model(text: str) -> tuple[str, str]:
    """Split `lang=X` or `X`, where X itself may contain an equals sign."""
    language, equals, model = text.partition("=")
    if equals and LANGUAGE_TAG.fullmatch(language.strip()):
        return primary_language(language.strip()), model
    return ANY_LANGUAGE, text


def strings(value: object) -> Iterable[str]:
    """Return a list of texts. Raises: ValueError for anything else."""
    if not isinstance(value, Iterable) or any(not isinstance(item, str) for item in value):
        raise ValueError(f"expected text or a list of texts, got {value!r}")
    return value

"""Emotions of models' labels: the built-in map of common spellings, and the user's own map (`--label-map`).

A map belongs to a language, or to every language under `ANY_LANGUAGE`. Labels are compared without case and outer spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import did_you_mean
from pipeline.schema import EMOTIONS, VOCABULARY

ANY_LANGUAGE = "*"
"""Key of a model or a label map that was given without a language."""
FILE_SUFFIXES = (".json", ".yaml", ".yml", ".toml")
"""Suffixes by which `--label-map` recognises a file."""
LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""Pattern of a BCP-47 tag before an option's value."""

SPELLINGS: Mapping[str, str] = {
    **VOCABULARY,
    "ang": "anger",
    "dis": "disgust",
    "disgusted": "disgust",
    "fea": "fear",
    "afraid": "fear",
    "scared": "fear",
    "hap": "joy",
    "joyful": "joy",
    "neu": "neutral",
    "sur": "surprise",
}
"""Emotion of each common spelling. Labels that differ from every emotion, such as `calm` or `excited`, have none."""

LabelMaps = Mapping[str, Mapping[str, str | None]]
"""Emotion, or None, by label, by language (a primary tag, or `ANY_LANGUAGE`)."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The settings that decide which models a dataset takes.

    Attributes:
        version: `schema_version` of the dataset.
        maps: the user's maps, by language.
        calibrated: True when temperatures are applied to the models.
        precision: precision in which the models are loaded.
        longest_s, shortest_s: bounds in seconds of the utterances into which recordings are cut; None where they are not.
    """

    version: int
    maps: LabelMaps | None = None
    calibrated: bool = False
    precision: str = "fp32"
    longest_s: float | None = None
    shortest_s: float | None = None


def key_of(label: str) -> str:
    """Return the form in which labels are compared."""
    return label.strip().lower()


def emotion_by(maps: LabelMaps | None, language: str, label: str) -> str | None:
    """Return the emotion of a model's label, or None.

    Args:
        maps: the user's maps; they take precedence over `SPELLINGS`, the language's over that of every language.
        language: primary tag of the model's language.
    """
    key = key_of(label)
    for own in (maps or {}).get(language, {}), (maps or {}).get(ANY_LANGUAGE, {}):
        if key in own:
            return own[key]
    return SPELLINGS.get(key)


def split_language(text: str) -> tuple[str, str]:
    """Split `[LANG=]FILE|label=emotion,...` into language tag, or `ANY_LANGUAGE`, and the rest.

    `hap=joy` maps a label: what follows the first `=` is an emotion or nothing. `en=hap=joy` and `en=map.json` begin with a
    language.
    """
    tag, equals, rest = text.partition("=")
    first = rest.partition(",")[0]
    if equals and LANGUAGE_TAG.fullmatch(tag.strip()) and ("=" in first or is_file(rest)):
        return tag.strip().partition("-")[0].lower(), rest
    return ANY_LANGUAGE, text


def is_file(text: str) -> bool:
    """Return whether the value of `--label-map`, without a language, names a file."""
    return text.strip().lower().endswith(FILE_SUFFIXES) and ("=" not in text or "/" in text.partition("=")[0])


def entries_of(text: str) -> list[tuple[str, str]]:
    """Split `hap=joy,calm=` into labels and emotions. Raises: ValueError for an entry without `=`."""
    pairs = []
    for entry in text.split(","):
        label, equals, emotion = entry.rpartition("=")
        if not equals:
            raise ValueError(
                f"{entry.strip()!r} is neither label=emotion nor a file that ends in {', '.join(FILE_SUFFIXES)}"
            )
        pairs.append((label, emotion))
    return pairs


def checked_map(pairs: Iterable[tuple[object, object]]) -> dict[str, str | None]:
    """Return one map with its labels in compared form; an emotion that is empty or None means that there is none.

    Raises: ValueError naming a label that is empty or given twice, or an emotion outside the vocabulary.
    """
    checked: dict[str, str | None] = {}
    for label, emotion in pairs:
        if isinstance(label, bool) or isinstance(emotion, bool):
            raise ValueError(f"{label}: {emotion} has a truth value, as YAML reads yes and no; put the word in quotes")
        key = key_of(str(label))
        if not key:
            raise ValueError(f"an entry has no label: {label}={emotion}")
        if key in checked:
            raise ValueError(f"maps the label {key!r} twice")
        value = key_of(str(emotion or ""))
        if value and value not in EMOTIONS:
            near = did_you_mean(SPELLINGS.get(value, value), EMOTIONS)
            raise ValueError(
                f"{key}={value}: {value!r} is not an emotion{near}; known are "
                f"{', '.join(EMOTIONS)}, and nothing for a label without an emotion"
            )
        checked[key] = value or None
    if not checked:
        raise ValueError("maps no label")
    return checked


def label_maps(value: object) -> dict[str, dict[str, str | None]]:
    """Return the maps by language from texts, from one map, or from maps by language.

    Raises: ValueError as `checked_map` does, for two maps of one language, and for a file, which only `load_config` reads.
    """
    maps: dict[str, dict[str, str | None]] = {}
    for language, pairs in _given(value):
        if language in maps:
            raise ValueError(f"has two maps for {'every language' if language == ANY_LANGUAGE else language}")
        maps[language] = checked_map(pairs)
    return maps


def _given(value: object) -> Iterable[tuple[str, Iterable[tuple[object, object]]]]:
    if value is None:
        return
    if isinstance(value, Mapping):
        nested = {name: each for name, each in value.items() if isinstance(each, Mapping)}
        if nested and len(nested) < len(value):
            raise ValueError("mixes labels and languages; write either label: emotion, or language: {label: emotion}")
        if value and not nested:
            yield ANY_LANGUAGE, value.items()
        for language, each in nested.items():
            yield str(language).partition("-")[0].lower(), each.items()
        return
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or not texts:
        raise ValueError(f"expected label=emotion entries or a map, got {value!r}")
    for text in texts:
        language, rest = split_language(str(text))
        yield language, entries_of(rest)

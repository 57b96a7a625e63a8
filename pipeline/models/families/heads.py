"""The head of a checkpoint, from its config.json alone: softmax, sigmoid or regression, and the names of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.published import EMOTION_MODELS
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.protocol import Head, HeadKind

_PUBLISHED_LABELS = {
    "en": ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
    "es": ("anger", "disgust", "fear", "joy", "neutral", "sadness"),
}
"""Labels by class index of the published checkpoints, for configs with LABEL_0, LABEL_1, ... or no labels."""

_PROBLEMS = {
    None: None,
    "single_label_classification": HeadKind.SOFTMAX,
    "multi_label_classification": HeadKind.SIGMOID,
    "regression": HeadKind.REGRESSION,
}
"""transformers' `problem_type`, which selects the loss in training."""
_FUNCTIONS = {None: None, "softmax": HeadKind.SOFTMAX, "sigmoid": HeadKind.SIGMOID, "none": HeadKind.REGRESSION}
"""`function_to_apply` of transformers' text-classification pipeline."""


DIMENSIONS = {"arousal", "dominance", "valence"}
"""Names of outputs that are values on a scale, whether or not a config says so."""


def head_of(checkpoint: Checkpoint) -> Head:
    """Return the head that a config describes.

    `problem_type` and `function_to_apply` decide. Without them one output, or outputs named after dimensions, are a
    regression, and others are classes.

    Raises: ConfigError for values that transformers does not know, two that disagree, or outputs without names.
    """
    config = checkpoint.read_json("config.json")
    problem = _known(config, "problem_type", _PROBLEMS, checkpoint.spec)
    function = _known(config, "function_to_apply", _FUNCTIONS, checkpoint.spec)
    if problem and function and problem is not function:
        raise ConfigError(
            f"config.json of model {checkpoint.spec} has problem_type {config['problem_type']!r} and function_to_apply "
            f"{config['function_to_apply']!r}, which disagree; correct one of them"
        )
    names = names_of(checkpoint)
    values = len(names) == 1 or {name.lower() for name in names} <= DIMENSIONS
    kind = problem or function or (HeadKind.REGRESSION if values else HeadKind.SOFTMAX)
    if kind is HeadKind.SOFTMAX and len(names) == 1:
        raise ConfigError(
            f"model {checkpoint.spec} has one output, {names[0]!r}, and a softmax over one output is always 1; correct "
            "problem_type in its config.json"
        )
    return Head(kind, names)


def _known(config: Mapping[str, Any], key: str, known: Mapping[Any, HeadKind | None], spec: str) -> HeadKind | None:
    value = config.get(key)
    if not isinstance(value, str | None) or value not in known:
        expected = ", ".join(str(each) for each in known if each)
        raise ConfigError(f"model {spec} has {key} {value!r} in its config.json; known values are {expected}")
    return known[value]


def names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's outputs by index, from its config alone.

    Raises: ConfigError for outputs without names in a checkpoint that is not one of the published ids.
    """
    named = checkpoint.read_json("config.json").get("id2label")
    try:
        by_index = {int(index): _name(label) for index, label in (named or {}).items()}
        names = tuple(by_index[index] for index in range(len(by_index)))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"id2label of model {checkpoint.spec} is not a map of 0, 1, ... to names: {named!r}"
        ) from error
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):  # transformers' placeholders, or no names
        hub_id = checkpoint.spec.partition("@")[0]
        language = next((language for (language, _), model in EMOTION_MODELS.items() if model == hub_id), None)
        if language is None or len(names) not in (0, len(_PUBLISHED_LABELS[language])):
            raise ConfigError(f"model {checkpoint.spec} does not name its classes; add id2label to its config.json")
        return _PUBLISHED_LABELS[language]
    return names


def _name(label: object) -> str:
    """Return the name of an output; a number is a name too. Raises: ValueError for anything else, or a blank name."""
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise ValueError(f"{label!r} is not a name")
    return str(label)

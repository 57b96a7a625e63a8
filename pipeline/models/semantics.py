"""Meaning of a model's heads: which outputs are labels, which emotions they have, and which are dimensions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline import SAMPLING_RATE
from pipeline.config.labels import LabelRules, emotion_by, key_of
from pipeline.errors import ConfigError
from pipeline.models.families.protocol import Declaration, Head, HeadKind
from pipeline.schema import DIMENSIONS, emotion_of

_DIMENSION_OF = {
    **{name: name for name in DIMENSIONS},
    "activation": "arousal",
    "act": "arousal",
    "aro": "arousal",
    "val": "valence",
    "pleasure": "valence",
    "dom": "dominance",
}
"""Column of each common name of a regression's output."""
_OLD_VERSION = 3
"""Datasets of a lower schema version take models of the vocabulary alone."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One output of a regression head.

    Attributes:
        column: the output column, one of `schema.DIMENSIONS`.
        head, output: indices of the head and of its output.
        scale: the model's own scale, lowest and highest value; None when it states none.
    """

    column: str
    head: int
    output: int
    scale: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Meaning:
    """Meaning of a model's outputs.

    Attributes:
        head: index of the head with the labels; None for a model of regressions alone.
        kind: of that head; `REGRESSION` without one.
        labels: names of its outputs, as in the checkpoint.
        emotions: the emotion of each label, or None.
        dimensions: outputs that have a column.
        unused: names of regression outputs and further heads that have no column.
    """

    head: int | None
    kind: HeadKind
    labels: tuple[str, ...]
    emotions: tuple[str | None, ...]
    dimensions: tuple[Dimension, ...]
    unused: tuple[str, ...]


def meaning_of(heads: Sequence[Head], emotion: Callable[[str], str | None], spec: str) -> Meaning:
    """Return the meaning of a model's heads. The first head that is not a regression gives the labels.

    Args:
        emotion: returns the emotion of a label, or None.
        spec: the model, for messages.
    Raises: ConfigError for two outputs of one name, or two dimensions of one column.
    """
    chosen = next((index for index, head in enumerate(heads) if head.kind is not HeadKind.REGRESSION), None)
    labels = () if chosen is None else heads[chosen].names
    if len(set(labels)) != len(labels):
        raise ConfigError(f"model {spec} has two classes of one name in {labels}; correct id2label in its config.json")
    dimensions: dict[str, Dimension] = {}
    unused: list[str] = []
    for index, head in enumerate(heads):
        for output, name in enumerate(() if index == chosen else head.names):
            column = _DIMENSION_OF.get(key_of(name)) if head.kind is HeadKind.REGRESSION else None
            if column is None:
                unused.append(name)
            elif column in dimensions:
                raise ConfigError(
                    f"model {spec} has two outputs for {column}, the second is {name!r}; rename one of them"
                )
            else:
                dimensions[column] = Dimension(column, index, output, head.range)
    return Meaning(
        head=chosen,
        kind=HeadKind.REGRESSION if chosen is None else heads[chosen].kind,
        labels=labels,
        emotions=tuple(map(emotion, labels)),
        dimensions=tuple(dimensions.values()),
        unused=tuple(unused),
    )


def warnings_of(declaration: Declaration, spec: str, language: str, rules: LabelRules) -> Iterator[str]:
    """Check a model for a dataset. Yields warnings about outputs without an emotion or a column, and unsuitable utterances.

    Raises: ConfigError for a model that datasets of the schema version, or with a calibration, do not take.
    """
    heads = declaration.heads
    meaning = meaning_of(heads, lambda label: emotion_by(rules.maps, language, label), spec)
    if rules.version < _OLD_VERSION:
        require_vocabulary(heads, spec)
    require_softmax(meaning, spec, calibrated=rules.calibrated)
    unmapped = [label for label, emotion in zip(meaning.labels, meaning.emotions, strict=True) if emotion is None]
    silenced = [label for label in unmapped if _is_mapped_to_nothing(label, language, rules.maps)]
    if unmapped := [label for label in unmapped if label not in silenced]:
        yield (
            f"model {spec} has labels without an emotion: {', '.join(map(repr, unmapped))}; where one of them is best, the "
            f"emotion is null. {_advice(unmapped, language)}"
        )
    if meaning.unused:
        yield f"model {spec} has outputs without a column: {', '.join(map(repr, meaning.unused))}; they are not written"
    yield from _duration_warnings(declaration, spec, rules)


def _duration_warnings(declaration: Declaration, spec: str, rules: LabelRules) -> Iterator[str]:
    """Yield warnings about utterances that are longer or shorter than a model uses."""
    longest_s, shortest_s = declaration.max_duration_s, declaration.min_samples / SAMPLING_RATE
    if longest_s is not None and (rules.longest_s or 0.0) > longest_s:
        yield (
            f"model {spec} uses the first {longest_s:g} s of an utterance, and recordings are cut into utterances of up to "
            f"{rules.longest_s:g} s; --max-segment-s {longest_s:g} cuts them shorter"
        )
    if rules.shortest_s is not None and rules.shortest_s < shortest_s:
        yield f"model {spec} needs at least {shortest_s:g} s of audio, more than the {rules.shortest_s:g} s of --window-s"


def _advice(unmapped: Sequence[str], language: str) -> str:
    """Return how to name the emotions of labels, for the shell."""
    keys = [key_of(label) for label in unmapped if "," not in label]
    if not keys:
        return "A file for --label-map names them; `label: null` there silences this warning"
    entry = f"{language}={keys[0]}="
    return f"--label-map {shlex.quote(f'{entry}EMOTION')} names one, and {shlex.quote(entry)} silences this warning"


def _is_mapped_to_nothing(label: str, language: str, maps: Mapping[str, Mapping[str, str | None]] | None) -> bool:
    return any(key_of(label) in own for tag, own in (maps or {}).items() if tag in (language, "*"))


def require_softmax(meaning: Meaning, spec: str, *, calibrated: bool) -> None:
    """Refuse a calibration of a model without softmax. Raises: ConfigError."""
    if calibrated and meaning.kind is not HeadKind.SOFTMAX:
        raise ConfigError(
            f"--calibration is for models with a softmax over classes; model {spec} has a {meaning.kind} head"
        )


def require_vocabulary(heads: Sequence[Head], spec: str) -> None:
    """Refuse a model that does not choose one of the emotions by softmax, as datasets of schema versions 1 and 2 need.

    Raises: ConfigError for another head, a label outside the vocabulary, or two labels of one emotion.
    """
    head, *others = heads
    if head.kind is not HeadKind.SOFTMAX or others:
        raise ConfigError(
            f"model {spec} has a {head.kind} head ({', '.join(head.names)}); this output, made by an earlier version, takes "
            "only models that choose one label by softmax (single_label_classification); use another --output"
        )
    emotions = [emotion_of(label) for label in head.names]
    if len(set(emotions)) != len(emotions):
        raise ConfigError(f"model {spec} needs two or more classes of different emotions, and has {head.names}")

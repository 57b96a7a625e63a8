"""Requirements of each mode, from configs alone: labels, embedding widths, and checks that the weights would load.

The driver runs these checks before a job starts; this module allocates no weights.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.choice import family_of
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import Head, HeadKind
from pipeline.schema import emotion_of


def labels_of(fusion: Checkpoint) -> tuple[str, ...]:
    """Return a checkpoint's class names by index, from its config alone.

    Raises: ConfigError for names outside the shared vocabulary, two that mean one emotion, classes without names in
        a checkpoint that is not one of the published ids, or a model whose outputs are not one softmax over classes.
    """
    return labels(head_of(fusion), fusion.spec)


def labels(head: Head, spec: str) -> tuple[str, ...]:
    """Return the class names of a head. Raises: ConfigError as `labels_of` does."""
    if head.kind is not HeadKind.SOFTMAX:
        raise ConfigError(
            f"model {spec} has a {head.kind} head ({', '.join(head.names)}); only models that choose one label by softmax "
            "(single_label_classification) can be used"
        )
    emotions = [emotion_of(label) for label in head.names]
    if len(set(emotions)) != len(emotions):
        raise ConfigError(f"model {spec} needs two or more classes of different emotions, and has {head.names}")
    return head.names


def embedding_widths(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> dict[str, int]:
    """Return the embedding columns of a mode with their widths, in `schema.EMBEDDINGS` order."""
    return dict(family_of(mode, fusion, sentence_encoder).declaration.embedding_widths)


def check(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> None:
    """Check that `EmotionRecogniser` would load: configs, labels, tokenizers, every tensor's name and shape.

    Raises: ConfigError as the constructor would.
    """
    family = family_of(mode, fusion, sentence_encoder)
    family.check()
    labels(family.declaration.heads[0], fusion.spec)

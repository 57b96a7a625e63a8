"""Requirements of each mode, from configs alone: labels, embedding widths, and checks that the weights would load.

The driver runs these checks before a job starts; this module allocates no weights.
"""

from __future__ import annotations

from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.choice import family_of
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import Declaration


def labels_of(fusion: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's outputs by index, from its config alone. Raises: ConfigError as `head_of`."""
    return head_of(fusion).names


def embedding_widths(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> dict[str, int]:
    """Return the embedding columns of a mode with their widths, in `schema.EMBEDDINGS` order."""
    return dict(family_of(mode, fusion, sentence_encoder).declaration.embedding_widths)


def check(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> Declaration:
    """Check that `EmotionRecogniser` would load: configs, tokenizers, every tensor's name and shape.

    Returns: the model's declaration.
    Raises: ConfigError as the constructor would.
    """
    family = family_of(mode, fusion, sentence_encoder)
    family.check()
    return family.declaration

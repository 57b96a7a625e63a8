"""Requirements of each mode, from configs alone: labels, embedding widths, and checks that the weights would load.

The driver runs these checks before a job starts; this module allocates no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.config.labels import LabelRules
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.choice import family_of
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import Declaration, require_declared
from pipeline.models.semantics import warnings_of
from pipeline.pins import Role


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


def check_further(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> tuple[str, Declaration]:
    """Find the mode of a further model of a dataset, and check it as `check` does.

    A dataset of a fusion mode has audio and texts for models of that mode, of voice alone and of words alone; one of the
    modes audio and text only for its own.

    Args:
        mode: of the dataset.
    Returns: the model's mode and its declaration.
    Raises: ConfigError with the fault in each mode.
    """
    faults = []
    for candidate in (mode,) if mode in ("audio", "text") else ("audio", "text", mode):
        try:
            return candidate, check(candidate, fusion, sentence_encoder)
        except ConfigError as error:
            faults.append(f"mode {candidate}: {error}")
    raise ConfigError("; ".join(faults))


def check_for_dataset(declaration: Declaration, role: Role, spec: str, rules: LabelRules) -> Iterator[str]:
    """Check that a dataset takes a model, and yield warnings, as `semantics.warnings_of` does.

    Raises: ConfigError for a precision that the model does not have, and as `semantics.warnings_of`.
    """
    require_declared(declaration, rules.precision, spec)
    # a calibration is of the main model
    own = replace(rules, calibrated=rules.calibrated and not role.name)
    yield from warnings_of(declaration, spec, role.language, own)

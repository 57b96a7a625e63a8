"""Families of installed packages, found through the entry point group `speech_emotion.models`.

The entry point's name is the `model_type` in a checkpoint's config.json, and its object takes the checkpoint and returns
a `protocol.Family`. So a model id, its pin, its copy to every node and `--models` work as for any other checkpoint.
docs/custom-models.md is the guide, examples/loudness-model an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.published import ENTRY_POINTS
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.protocol import Declaration, Family
from pipeline.schema import EMBEDDINGS


def installed_types() -> list[str]:
    """Return the model types that installed packages add."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


def installed_family(mode: str, checkpoint: Checkpoint) -> Family | None:
    """Return the checkpoint as a member of an installed family; None when no package knows its model type.

    Raises: ConfigError when two packages claim the type, one cannot be imported, or its declaration does not fit `mode`.
    """
    model_type = checkpoint.read_json("config.json").get("model_type")
    entries = list(entry_points(group=ENTRY_POINTS, name=str(model_type)))
    if not entries:
        return None
    if len(entries) > 1:
        raise ConfigError(
            f"model type {model_type!r} is claimed by more than one package: {_names(entries)}; remove one"
        )
    (entry,) = entries
    try:
        make = cast(Callable[[Checkpoint], Family], entry.load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the package for model type {model_type!r} ({entry.value}) does not import: {error}"
        ) from error
    family = make(checkpoint)
    _require(family.declaration, mode, f"model {checkpoint.spec}, in the package {_names(entries)},")
    return family


def _names(entries: Iterable[EntryPoint]) -> str:
    return ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in entries))


def _require(declared: Declaration, mode: str, subject: str) -> None:
    if declared.inputs != (mode,):
        raise ConfigError(f"{subject} takes {' and '.join(declared.inputs)}; mode {mode} needs a model of {mode} alone")
    names = [name for head in declared.heads for name in head.names]
    if not names or len(set(names)) != len(names) or not all(names):
        raise ConfigError(f"{subject} declares outputs {names}; each needs a name of its own")
    if not declared.embedding_widths.keys() <= set(EMBEDDINGS):
        raise ConfigError(
            f"{subject} declares embeddings {', '.join(declared.embedding_widths)}; known are {', '.join(EMBEDDINGS)}"
        )

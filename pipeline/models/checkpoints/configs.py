"""transformers' config object of a checkpoint, and the errors of networks that a config cannot describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import Checkpoint


def transformers_config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the config object of config.json's `model_type`. No code of the checkpoint is run.

    Raises: ConfigError for a type that transformers does not know, or values that make no config.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    config = checkpoint.read_json("config.json")
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"model {checkpoint.spec} is of type {model_type!r}, which transformers does not know")
    try:
        return CONFIG_MAPPING[model_type].from_dict(config)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config.json of model {checkpoint.spec} makes no {model_type} model: {reason}") from error


@contextmanager
def building(model: str) -> Iterator[None]:
    """Turn the errors of a network that is built from a config into ConfigError.

    Args:
        model: the model, as in `model UMUTeam/x`, for the message.
    """
    try:
        yield
    except (ConfigError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"its config.json has no usable {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{model} cannot be used: {reason}") from error

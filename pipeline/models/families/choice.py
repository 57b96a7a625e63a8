"""Recognition of a checkpoint's family from its config.json alone."""

from __future__ import annotations

from pipeline.errors import ConfigError, did_you_mean
from pipeline.models.checkpoints.published import EMOTION_MODELS
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families import audio, ser, waveforms
from pipeline.models.families.audio import AudioClassification
from pipeline.models.families.installed import installed_family, installed_types
from pipeline.models.families.pooled import PooledHeads, is_pooled
from pipeline.models.families.protocol import Family
from pipeline.models.families.ser import OdysseyBaseline
from pipeline.models.families.text import TextClassification
from pipeline.models.families.umuteam import UMUTeam
from pipeline.models.networks.fusion import MODES
from pipeline.models.sentence import CLASSIFIERS

_STOCK_HEADS = ("ForSequenceClassification", "ForAudioClassification", "ASTForAudioClassification")
"""Endings of the names of transformers' own audio classifiers."""


def family_of(mode: str, checkpoint: Checkpoint, sentence_encoder: Checkpoint | None = None) -> Family:
    """Return the checkpoint as a member of its family, not loaded.

    Args:
        mode: one of `fusion.MODES`.
        sentence_encoder: for mean, concat and multihead; the other modes ignore it.
    Raises: ConfigError for an unknown mode, a checkpoint that none of the mode's families covers, or one that needs
        code from its repository.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; the modes are {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    if mode not in ("audio", "text"):
        return UMUTeam(mode, checkpoint, sentence_encoder)
    model_type = checkpoint.read_json("config.json").get("model_type")
    if mode == "audio" and model_type == ser.MODEL_TYPE:
        return OdysseyBaseline(checkpoint)
    if model_type not in (audio.TYPES if mode == "audio" else CLASSIFIERS):
        family = installed_family(mode, checkpoint)
        if family is not None:
            return family
    _refuse_code(checkpoint)
    return TextClassification(checkpoint) if mode == "text" else _audio_family(checkpoint)


def _refuse_code(checkpoint: Checkpoint) -> None:
    """Reject a checkpoint whose config maps its classes to code in its repository."""
    mapped = checkpoint.read_json("config.json").get("auto_map")
    if mapped:
        raise ConfigError(
            f"model {checkpoint.spec} needs code from its own repository (auto_map in its config.json), and code in a "
            "checkpoint is never run; use a checkpoint of a supported type, or a package that implements this model"
        )


def _audio_family(checkpoint: Checkpoint) -> Family:
    config = checkpoint.read_json("config.json")
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if model_type not in audio.TYPES:
        supported = ", ".join((*audio.TYPES, ser.MODEL_TYPE, *installed_types()))
        raise ConfigError(f"model {checkpoint.spec} is of type {model_type!r}; mode audio supports {supported}")
    if model_type in waveforms.ENCODERS and is_pooled(checkpoint, config):
        return PooledHeads(checkpoint)
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    stock = name.endswith(_STOCK_HEADS)
    if model_type == "wav2vec2-bert" and (not stock or checkpoint.spec.partition("@")[0] in EMOTION_MODELS.values()):
        return UMUTeam("audio", checkpoint)
    if name and not stock:
        raise ConfigError(
            f"model {checkpoint.spec} is a {name}, which has no emotion head of a supported layout; a checkpoint of "
            f"{model_type} for audio classification is needed"
        )
    return AudioClassification(checkpoint)

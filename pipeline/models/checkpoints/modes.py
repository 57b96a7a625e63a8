"""Requirements of each mode, from configs alone: labels, embedding widths, and checks that the weights would load.

The driver runs these checks before a job starts; this module allocates no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError, did_you_mean
from pipeline.models.checkpoints.published import EMOTION_MODELS
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.checkpoints.weights import check as check_weights
from pipeline.models.networks.fusion import MODES, UNEXPECTED_ALLOWED, FusionModel, fused_width
from pipeline.models.sentence import check_text_model, text_width
from pipeline.schema import emotion_of

_PUBLISHED_LABELS = {
    "en": ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
    "es": ("anger", "disgust", "fear", "joy", "neutral", "sadness"),
}
"""Labels by class index of the published checkpoints, for configs with LABEL_0, LABEL_1, ... or no labels."""

_ONE_LABEL = (None, "single_label_classification")
_SOFTMAX = (None, "softmax")


def require(mode: str, sentence_encoder: Checkpoint | None) -> None:
    """Reject an unknown mode, or one that lacks its sentence encoder. Raises: ConfigError."""
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; the modes are {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    if mode not in ("audio", "text") and sentence_encoder is None:
        raise ConfigError(f"mode {mode} fuses audio with text and needs a sentence encoder")


def labels_of(fusion: Checkpoint) -> tuple[str, ...]:
    """Return a checkpoint's class names by index, from its config alone.

    Raises: ConfigError for names outside the shared vocabulary, two that mean one emotion, classes without names in
        a checkpoint that is not one of the published ids, or a model whose outputs are not one softmax over classes.
    """
    config = fusion.read_json("config.json")
    named = config.get("id2label")
    _require_one_label(fusion, config)
    try:
        by_index = {int(index): str(label) for index, label in (named or {}).items()}
        labels = tuple(by_index[index] for index in range(len(by_index)))
    except (AttributeError, ValueError, KeyError) as error:
        raise ConfigError(f"id2label of model {fusion.spec} is not a map of 0, 1, ... to names: {named!r}") from error
    if all(label == f"LABEL_{index}" for index, label in enumerate(labels)):  # transformers' placeholders, or no labels
        hub_id = fusion.spec.partition("@")[0]
        language = next((language for (language, _), model in EMOTION_MODELS.items() if model == hub_id), None)
        if language is None or len(labels) not in (0, len(_PUBLISHED_LABELS[language])):
            raise ConfigError(f"model {fusion.spec} does not name its classes; add id2label to its config.json")
        labels = _PUBLISHED_LABELS[language]
    emotions = [emotion_of(label) for label in labels]
    if len(labels) < 2 or len(set(emotions)) != len(emotions):
        raise ConfigError(f"model {fusion.spec} needs two or more classes with different emotions; it has {labels}")
    return labels


def _require_one_label(fusion: Checkpoint, config: Mapping[str, Any]) -> None:
    """Reject a model with independent labels or a regression: a softmax over its outputs has no meaning.

    transformers uses `problem_type` for training, and `function_to_apply` in its text-classification pipeline.
    """
    problem, function = config.get("problem_type"), config.get("function_to_apply")
    if problem not in _ONE_LABEL or function not in _SOFTMAX:
        said = f"problem_type {problem!r}" if problem not in _ONE_LABEL else f"function_to_apply {function!r}"
        raise ConfigError(
            f"model {fusion.spec} has {said} in its config.json; only models that choose one label by softmax "
            "(single_label_classification) can be used"
        )
    if config.get("num_labels") == 1 or (isinstance(config.get("id2label"), Mapping) and len(config["id2label"]) == 1):
        raise ConfigError(
            f"model {fusion.spec} has one output, which is a regression; a model of two or more classes is needed"
        )


def embedding_widths(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> dict[str, int]:
    """Return the embedding columns of a mode with their widths, in `schema.EMBEDDINGS` order."""
    require(mode, sentence_encoder)
    if mode == "text":
        return {"text_embedding": text_width(fusion)}
    audio = fusion_config(fusion).classifier_proj_size
    if mode == "audio" or sentence_encoder is None:
        return {"audio_embedding": audio, "fused_embedding": audio}
    text = text_width(sentence_encoder)
    return {"audio_embedding": audio, "text_embedding": text, "fused_embedding": fused_width(mode, audio, text)}


def check(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> None:
    """Check that `EmotionRecogniser` would load: configs, labels, tokenizers, every tensor's name and shape.

    Raises: ConfigError as the constructor would.
    """
    require(mode, sentence_encoder)
    labels_of(fusion)
    if mode == "text":
        check_text_model(fusion, classify=True)
        return
    if mode != "audio" and sentence_encoder is not None:
        check_text_model(sentence_encoder, classify=False)
    feature_extractor(fusion)
    check_weights(fusion, lambda: build_fusion(mode, fusion, sentence_encoder), allow_unexpected=UNEXPECTED_ALLOWED)


def build_fusion(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None) -> FusionModel:
    """Build the module of a speech mode on the default device, without loading weights."""
    width = text_width(sentence_encoder) if mode != "audio" and sentence_encoder is not None else None
    config = fusion_config(fusion)
    config.num_labels = len(labels_of(fusion))
    try:
        return FusionModel(config, mode, width)
    except ConfigError as error:
        raise ConfigError(f"model {fusion.spec} cannot be used: {error}") from error


def fusion_config(fusion: Checkpoint) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the `Wav2Vec2BertConfig` of a speech checkpoint. Raises: ConfigError for another model type."""
    from transformers import Wav2Vec2BertConfig

    config = fusion.read_json("config.json")
    if config.get("model_type") != "wav2vec2-bert":
        raise ConfigError(
            f"model {fusion.spec} is of type {config.get('model_type')!r}; the speech modes need wav2vec2-bert"
        )
    try:
        return Wav2Vec2BertConfig.from_dict(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"config.json of model {fusion.spec} does not describe a Wav2Vec2-BERT: {error}") from error


def feature_extractor(fusion: Checkpoint) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the checkpoint's `SeamlessM4TFeatureExtractor`. Raises: ConfigError when it does not fit the model."""
    from transformers import SeamlessM4TFeatureExtractor

    expected = fusion_config(fusion).feature_projection_input_dim
    try:
        extractor = SeamlessM4TFeatureExtractor.from_pretrained(fusion.directory, local_files_only=True)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"the feature extractor of model {fusion.spec} cannot be loaded: {error}") from error
    width = extractor.num_mel_bins * extractor.stride
    if width != expected or extractor.sampling_rate != SAMPLING_RATE:
        raise ConfigError(
            f"the feature extractor of model {fusion.spec} makes frames of {width} values at "
            f"{extractor.sampling_rate} Hz; {expected} at {SAMPLING_RATE} Hz are needed"
        )
    return extractor

"""Tiny random checkpoints in the layouts that are published, and transformers' own scores for them, one clip at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from pipeline.models.checkpoints.weights import Checkpoint, resolve

LABELS = ("angry", "happy", "neutral", "sad")
_RAW: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (24,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16, "vocab_size": 10,
    "mask_time_prob": 0.05,
}  # fmt: skip
_SEW = {**_RAW, "conv_dim": (24,) * 13}
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60,
    "max_position_embeddings": 24, "pad_token_id": 1,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "wav2vec2": _RAW,
    "hubert": _RAW,
    "wavlm": _RAW,
    "unispeech-sat": _RAW,
    "data2vec-audio": {**_RAW, "conv_pos_kernel_size": 5},
    "wav2vec2-conformer": _RAW,
    "sew": _SEW,
    "sew-d": {**_SEW, "feature_layer_norm_eps": 1e-5},
    "wav2vec2-bert": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "classifier_proj_size": 16,
    },
    "whisper": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "classifier_proj_size": 16, "vocab_size": 60, "pad_token_id": 1,
        "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
    },
    "audio-spectrogram-transformer": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_length": 256,
    },
    "bert": _TEXT,
    "roberta": _TEXT,
    "xlm-roberta": _TEXT,
    "camembert": _TEXT,
    "electra": {**_TEXT, "embedding_size": 24},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 60, "max_position_embeddings": 24,
                   "pad_token_id": 1},
    "deberta-v2": {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
                   "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
                   "type_vocab_size": 0},
}  # fmt: skip
"""Small sizes for each model type, with the switches of the published checkpoints."""


def config_of(model_type: str, **changes: object) -> Any:
    """A transformers config with named classes."""
    names = changes.pop("names", LABELS)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return CONFIG_MAPPING[model_type](**{**CONFIGS[model_type], **labels, **changes})


def extractor_of(config: Any) -> Any:
    """The feature extractor that is published beside such a model."""
    if config.model_type == "whisper":
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    if config.model_type == "audio-spectrogram-transformer":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filter")
            return ASTFeatureExtractor(max_length=config.max_length)
    if config.model_type == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=2)
    layer = config.feat_extract_norm == "layer"
    return Wav2Vec2FeatureExtractor(do_normalize=layer, return_attention_mask=layer)


def tones(*lengths: int) -> list[NDArray[np.float32]]:
    """A tone of its own in noise for each length in samples, with an offset that a normalisation removes."""
    made = []
    for number, samples in enumerate(lengths):
        noise = np.random.default_rng(number).normal(0.02, 0.1, samples)
        tone = 0.5 * np.sin(np.arange(samples) * 0.05 * (1 + 2 * number))
        made.append((tone + noise).astype(np.float32))
    return made


def filled(network: nn.Module, seed: int = 3) -> nn.Module:
    """A network whose every tensor is random and large enough to move its output; norms and scales stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return network.eval()


def write(folder: Path, network: nn.Module, config: Any, *, old: bool = False, **values: object) -> Checkpoint:
    """Write config and weights.

    Args:
        old: a pickled pytorch_model.bin with the names of torch's former weight norm, instead of safetensors.
        values: further values of config.json; None removes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {**config.to_dict(), "architectures": [type(network).__name__], **values}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in described.items() if v is not None}))
    state = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    if old:
        now, then = ".parametrizations.weight.original", (".weight_g", ".weight_v")
        renamed = {n.replace(f"{now}0", then[0]).replace(f"{now}1", then[1]): t for n, t in state.items()}
        torch.save(renamed, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return resolve(str(folder))


def audio_checkpoint(
    folder: Path, model_type: str, *, old: bool = False, **changes: Any
) -> tuple[nn.Module, Any, Checkpoint]:
    """A network of transformers' audio classification, its feature extractor, and both as a checkpoint."""
    config = config_of(model_type, **changes)
    network = filled(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)](config))
    extractor = extractor_of(config)
    extractor.save_pretrained(folder)
    return network, extractor, write(folder, network, config, old=old)


@torch.inference_mode()
def stock_logits(network: nn.Module, extractor: Any, clips: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """transformers' own logits, one clip at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        each = [network(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits for clip in clips]
    return torch.cat(each).numpy()


def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    """A tokenizer of letters with RoBERTa's special tokens and ids, in one of two kinds."""
    letters = list("abcdefghijklmnopqrstuvwxyz'.,!?")
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    if kind == "wordpiece":
        pieces = {f"##{letter}": len(vocabulary) + i for i, letter in enumerate("aeinorst")}
        made = Tokenizer(models.WordPiece({**vocabulary, **pieces}, unk_token="<unk>"))
    else:
        scored = [(token, -float(i)) for i, token in enumerate(vocabulary)]
        made = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return made


def text_checkpoint(
    folder: Path, model_type: str, *, kind: str = "wordpiece", old: bool = False, **changes: Any
) -> tuple[nn.Module, Tokenizer, Checkpoint]:
    """A network of transformers' sequence classification, its tokenizer, and both as a checkpoint."""
    config = config_of(model_type, **changes)
    network = filled(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config))
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(kind)
    made.save(str(folder / "tokenizer.json"))
    return network, made, write(folder, network, config, old=old)

"""Export of the small emotion models in the published layout, with shared weights once on disk.

sentence-encoder/                 BERT, for both languages
text-<language>/                  the text mode's classifier
acoustic-encoder.safetensors      Wav2Vec2-BERT, for all of the following
<mode>-<language>/                sharded safetensors: a link to the encoder, and the mode's own weights
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertForSequenceClassification, SeamlessM4TFeatureExtractor

from pipeline.models.networks.fusion import AUDIO_MODES
from tools.demo_models import sentences_train
from tools.demo_models.emotion_train import Feeler, config
from tools.demo_models.grammar import LABELS, LANGUAGES
from tools.demo_models.sentences_train import EMOTIONS

ENCODER = "acoustic-encoder.safetensors"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_sentences(model: BertForSequenceClassification, target: Path) -> None:
    """Write the sentence encoder, and the text mode of each language: the same encoder with a head."""
    tokens = sentences_train.tokenizer()
    state = model.state_dict()
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("bert.")}
    described = model.config.to_dict()
    bare = {name: value for name, value in described.items() if name not in ("id2label", "label2id", "problem_type")}
    folder = target / "sentence-encoder"
    _write_json(folder / "config.json", {**bare, "architectures": ["BertModel"], "dtype": "float32"})
    _save(encoder, folder / "model.safetensors")
    tokens.save_pretrained(folder)
    for language in LANGUAGES:
        folder = target / f"text-{language}"
        kept = [index for index, emotion in enumerate(EMOTIONS) if language == "en" or emotion != "surprise"]
        head = {name: state[name][kept] for name in ("classifier.weight", "classifier.bias")}
        labels = dict(enumerate(LABELS[language]))
        named = {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
        config_ = {**described, **named, "architectures": ["BertForSequenceClassification"], "dtype": "float32"}
        _write_json(folder / "config.json", config_)
        _write_shards(folder, encoder, head, Path("..") / "sentence-encoder" / "model.safetensors")
        tokens.save_pretrained(folder)


def _write_shards(folder: Path, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], shared_file: Path) -> None:
    """Write a sharded checkpoint whose first shard is a link to `shared_file`, relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SHARDS[0]).unlink(missing_ok=True)
    (folder / _SHARDS[0]).symlink_to(shared_file)
    _save(own, folder / _SHARDS[1])
    weight_map = {**dict.fromkeys(shared, _SHARDS[0]), **dict.fromkeys(own, _SHARDS[1])}
    size = sum(tensor.numel() * 2 for tensor in (*shared.values(), *own.values()))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def write_speech(feeler: Feeler, target: Path) -> None:
    """Write the encoder, and audio, mean, concat and multihead of each language."""
    encoder = {f"wav2vec2_bert.{name}": t for name, t in feeler.wav2vec2_bert.state_dict().items()}
    _save(encoder, target / ENCODER)
    for mode in AUDIO_MODES:
        for language in LANGUAGES:
            folder = target / f"{mode}-{language}"
            own = feeler.modes[f"{mode}-{language}"].state_dict()
            described = config(language).to_dict()
            _write_json(folder / "config.json", {**described, "architectures": ["Wav2Vec2BertForEmotion"]})
            SeamlessM4TFeatureExtractor().save_pretrained(folder)
            _write_shards(folder, encoder, own, Path("..") / ENCODER)


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: (t.to(torch.float16) if t.is_floating_point() else t).contiguous() for name, t in state.items()}
    save_file(halved, path, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

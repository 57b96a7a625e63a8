"""The small emotion models in the published layout, the shared weights once on disk.

sentence-encoder/                 BERT, for both languages
text-<language>/                  the text mode's classifier
acoustic-encoder.safetensors      Wav2Vec2-BERT, for all of the following
<mode>-<language>/                sharded safetensors: a link to the encoder, and what is the mode's own
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertForSequenceClassification, SeamlessM4TFeatureExtractor

from pipeline.models.fusion import AUDIO_MODES
from tools.demo_models import sentences_train
from tools.demo_models.emotion_train import Feeler, config
from tools.demo_models.grammar import LABELS, LANGUAGES
from tools.demo_models.sentences_train import EMOTIONS

ENCODER = "acoustic-encoder.safetensors"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_sentences(model: BertForSequenceClassification, target: Path) -> None:
    """The sentence encoder, and the text mode of each language."""
    tokens = sentences_train.tokenizer()
    encoder = target / "sentence-encoder"
    bert = {name.removeprefix("bert."): t for name, t in model.state_dict().items() if name.startswith("bert.")}
    bert = {name: tensor for name, tensor in bert.items() if not name.startswith("pooler.")}
    described = model.config.to_dict()
    for absent in ("id2label", "label2id", "problem_type"):
        described.pop(absent, None)
    _write_json(encoder / "config.json", {**described, "architectures": ["BertModel"], "dtype": "float32"})
    _save(bert, encoder / "model.safetensors")
    tokens.save_pretrained(encoder)
    for language in LANGUAGES:
        folder = target / f"text-{language}"
        kept = [index for index, emotion in enumerate(EMOTIONS) if language == "en" or emotion != "surprise"]
        state = dict(model.state_dict())
        state |= {name: state[name][kept] for name in ("classifier.weight", "classifier.bias")}
        labels = {str(index): label for index, label in enumerate(LABELS[language])}
        config_ = {**model.config.to_dict(), "architectures": ["BertForSequenceClassification"], "dtype": "float32"}
        config_ |= {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
        _write_json(folder / "config.json", config_)
        _save(state, folder / "model.safetensors")
        tokens.save_pretrained(folder)


def write_speech(feeler: Feeler, target: Path) -> None:
    """The encoder, and audio, mean, concat and multihead of each language."""
    encoder = {f"wav2vec2_bert.{name}": t for name, t in feeler.wav2vec2_bert.state_dict().items()}
    _save(encoder, target / ENCODER)
    for mode in AUDIO_MODES:
        for language in LANGUAGES:
            folder = target / f"{mode}-{language}"
            own = feeler.modes[f"{mode}-{language}"].state_dict()
            described = config(language).to_dict()
            _write_json(folder / "config.json", {**described, "architectures": ["Wav2Vec2BertForEmotion"]})
            SeamlessM4TFeatureExtractor().save_pretrained(folder)
            (folder / _SHARDS[0]).unlink(missing_ok=True)
            (folder / _SHARDS[0]).symlink_to(Path("..") / ENCODER)
            _save(own, folder / _SHARDS[1])
            weight_map = {**dict.fromkeys(encoder, _SHARDS[0]), **dict.fromkeys(own, _SHARDS[1])}
            size = sum(t.numel() * 2 for t in (*encoder.values(), *own.values()))
            _write_json(
                folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
            )


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: (t.to(torch.float16) if t.is_floating_point() else t).contiguous() for name, t in state.items()}
    save_file(halved, path, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

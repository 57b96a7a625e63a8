"""Published model from stock transformers classes, batched and loaded once, for the plain scripts.

Texts are padded to the longest of their batch and the mask is passed everywhere, as a careful user would; nothing of
`pipeline` is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import librosa
import numpy as np
import torch
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    BertModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2BertPreTrainedModel,
)

BATCH_SIZE = 4
"""Batch size of the model stage in Ray's audio example."""


def load_audio(path: str) -> np.ndarray:
    """float32 [num_samples], mono at 16 kHz."""
    return librosa.load(path, sr=16_000)[0]


class MeanFusion(Wav2Vec2BertPreTrainedModel):
    """Model of mode `mean` with the checkpoint's parameter names, so that `from_pretrained` loads it."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__(config)
        width = config.classifier_proj_size
        self.wav2vec2_bert = Wav2Vec2BertModel(config)
        self.projector = nn.Linear(config.hidden_size, width)
        head = {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, config.num_labels)}
        self.classifier = nn.ModuleDict({**head, "layernorm": nn.LayerNorm(width)})
        self.post_init()

    def forward(self, input_features: torch.Tensor, attention_mask: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return scores [B, num_labels] for features [B, T, 160], their mask [B, T] and text embeddings [B, width]."""
        states = self.wav2vec2_bert(input_features, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        audio = (self.projector(states) * mask).sum(dim=1) / mask.sum(dim=1)
        fused = (audio + text) / 2
        return self.classifier["out_proj"](torch.tanh(self.classifier["dense"](fused))).softmax(dim=-1)


class Recogniser:
    """The emotion model and the sentence encoder, loaded once."""

    def __init__(self, fusion: str, encoder: str) -> None:
        torch.set_num_threads(1)  # as many processes as cores, so a thread each; Ray sets this by itself
        self.extractor = AutoFeatureExtractor.from_pretrained(fusion)
        self.fusion = MeanFusion.from_pretrained(fusion).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        self.bert = BertModel.from_pretrained(encoder).eval()

    @torch.inference_mode()
    def recognise(self, waveforms: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[list[str], list[list[float]]]:
        """Return the labels and scores of a batch."""
        read = self.tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
        text = self.bert(**read).last_hidden_state[:, 0]
        features = self.extractor(
            [np.asarray(waveform, np.float32) for waveform in waveforms],
            sampling_rate=16_000,
            padding=True,
            max_length=16_000,
            truncation=True,
            return_tensors="pt",
        )
        scores = self.fusion(features["input_features"], features["attention_mask"], text)
        names = self.fusion.config.id2label
        return [names[int(best)] for best in scores.argmax(dim=-1)], scores.tolist()

"""Heads of published checkpoints, written from their cited sources for one clip at a time, without padding.

Sources: the model card of audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim and soxan's `Wav2Vec2ForSpeechClassification`
for `DenseOnMean`; `net/pooling.py` and `net/ser.py` of msplabresearch/MSP-Podcast_Challenge for `AttentiveMlp`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MODEL_MAPPING


class DenseOnMean(nn.Module):
    """Frames averaged (or summed, or their maximum), then a linear map, tanh and a linear map."""

    def __init__(self, config, num_outputs: int, *, last: str = "out_proj") -> None:
        super().__init__()
        encoder = MODEL_MAPPING[type(config)](config)
        self.prefix, self.last = encoder.base_model_prefix, last
        self.add_module(self.prefix, encoder)
        width = config.hidden_size
        self.classifier = nn.ModuleDict({"dense": nn.Linear(width, width), last: nn.Linear(width, num_outputs)})

    def forward(self, input_values: Tensor, pooling: str = "mean") -> Tensor:
        frames = self.get_submodule(self.prefix)(input_values).last_hidden_state
        pooled = {"mean": frames.mean(1), "sum": frames.sum(1), "max": frames.max(1).values}[pooling]
        return self.classifier[self.last](torch.tanh(self.classifier["dense"](pooled)))


class AttentiveMlp(nn.Module):
    """Frames weighted by attention; their mean and deviation through layers of linear map, norm and ReLU."""

    def __init__(self, config, num_layers: int, num_outputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.ssl_model = MODEL_MAPPING[type(config)](config)
        self.pool_model = nn.Module()
        self.pool_model.sap_linear = nn.Linear(width, width)
        self.pool_model.attention = nn.Parameter(torch.randn(width, 1))
        inner = [2 * width] + [width] * (num_layers - 1)
        self.ser_model = nn.Module()
        self.ser_model.fc = nn.ModuleList([nn.Sequential(nn.Linear(n, width), nn.LayerNorm(width)) for n in inner])
        self.ser_model.out = nn.Sequential(nn.Linear(width, num_outputs))

    def forward(self, input_values: Tensor) -> Tensor:
        (frames,) = self.ssl_model(input_values).last_hidden_state
        weights = functional.softmax(torch.tanh(self.pool_model.sap_linear(frames)) @ self.pool_model.attention, dim=0)
        mean = (weights * frames).sum(0)
        deviation = ((weights * frames**2).sum(0) - mean**2).clamp(min=1e-5) ** 0.5
        hidden = torch.cat([mean, deviation])[None]
        for layer in self.ser_model.fc:
            hidden = torch.relu(layer(hidden))
        return self.ser_model.out(hidden)

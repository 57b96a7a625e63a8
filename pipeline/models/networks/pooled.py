"""Heads over the frames of a speech encoder: mean pooling with two layers, and attentive statistics with an MLP.

The parameter names are those of the published checkpoints. Sources, read as facts: the model card of
audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim and github.com/m3hrdadfi/soxan (`Wav2Vec2ForSpeechClassification`);
github.com/msplabresearch/MSP-Podcast_Challenge at f15511e and a9e1d2a (`net/ser.py`, `net/pooling.py`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

POOLINGS = ("mean", "sum", "max")
"""Values of soxan's `pooling_mode`."""

_LEAST_VARIANCE = 1e-5


class DenseHead(nn.Module):
    """A linear map, tanh, and a linear map to the outputs."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, num_outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits [B, num_outputs] of pooled frames [B, width]."""
        logits: Tensor = self.out_proj(torch.tanh(self.dense(pooled)))
        return logits


class PooledClassifier(nn.Module):
    """A speech encoder, pooling over its frames and a `DenseHead`.

    Args:
        encoder: a transformers speech model, stored under its own prefix (`wav2vec2`, `hubert`, ...).
        pooling: one of `POOLINGS`.
    """

    def __init__(self, encoder: Any, num_outputs: int, pooling: str) -> None:  # noqa: ANN401 - transformers ships no types
        super().__init__()
        self.add_module(encoder.base_model_prefix, encoder)
        self.classifier = DenseHead(encoder.config.hidden_size, num_outputs)
        self._prefix, self._pooling = encoder.base_model_prefix, pooling

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, num_outputs] and pooled frames [B, D] of waveforms [B, num_samples]."""
        frames, padding = _encoded(self.get_submodule(self._prefix), input_values, attention_mask)
        if self._pooling == "max":
            pooled = frames.masked_fill(padding, -torch.inf).amax(dim=1)
        else:
            pooled = frames.masked_fill(padding, 0.0).sum(dim=1)
            if self._pooling == "mean":
                pooled = pooled / (~padding).sum(dim=1)
        return self.classifier(pooled), pooled


class AttentiveStatistics(nn.Module):
    """Weighted mean and standard deviation over frames. Source: Okabe, Koshinaka and Shinoda 2018."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sap_linear = nn.Linear(width, width)
        self.attention = nn.Parameter(torch.zeros(width, 1))

    def forward(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return [B, 2 D] of frames [B, T, D]; padding: bool [B, T, 1]."""
        weights = torch.tanh(self.sap_linear(frames)) @ self.attention
        weights = weights.masked_fill(padding, -torch.inf).softmax(dim=1)
        frames = frames.masked_fill(padding, 0.0)
        mean = (frames * weights).sum(dim=1)
        variance = (frames.square() * weights).sum(dim=1) - mean.square()
        return torch.cat((mean, variance.clamp(min=_LEAST_VARIANCE).sqrt()), dim=1)


class StatisticsHead(nn.Module):
    """Layers of linear map, layer normalisation and ReLU, and a linear map to the outputs."""

    def __init__(self, inner: int, width: int, num_layers: int, num_outputs: int) -> None:
        super().__init__()
        widths = [inner] + [width] * num_layers
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU())
            for before, after in pairwise(widths)
        )
        self.out = nn.Sequential(nn.Linear(width, num_outputs))

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits [B, num_outputs] of statistics [B, inner]."""
        for layer in self.fc:
            pooled = layer(pooled)
        logits: Tensor = self.out(pooled)
        return logits


class StatisticsClassifier(nn.Module):
    """A speech encoder, attentive statistics over its frames and a `StatisticsHead`."""

    def __init__(self, encoder: Any, num_layers: int, num_outputs: int) -> None:  # noqa: ANN401 - as above
        super().__init__()
        width = encoder.config.hidden_size
        self.ssl_model = encoder
        self.pool_model = AttentiveStatistics(width)
        self.ser_model = StatisticsHead(2 * width, width, num_layers, num_outputs)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, num_outputs] and statistics [B, 2 D] of waveforms [B, num_samples]."""
        pooled = self.pool_model(*_encoded(self.ssl_model, input_values, attention_mask))
        return self.ser_model(pooled), pooled


def _encoded(encoder: Any, input_values: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - as above
    """Return frames [B, T, D] and bool [B, T, 1], True on frames of padding."""
    frames: Tensor = encoder(input_values, attention_mask=attention_mask).last_hidden_state
    if attention_mask is None:
        return frames, torch.zeros(*frames.shape[:2], 1, dtype=torch.bool, device=frames.device)
    real = encoder._get_feature_vector_attention_mask(frames.shape[1], attention_mask)
    return frames, ~real.bool().unsqueeze(-1)

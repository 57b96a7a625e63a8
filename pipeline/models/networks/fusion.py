"""Emotion classifiers for audio alone, or audio fused with a text embedding by mean, concat or multihead.

One class for the published checkpoints of all four modes, under their state-dict names, so that weights load
strictly. Costs 2.3 GB of fp32 weights at the published size (about 580 M parameters, 24 layers, 1,024 wide) and 1.96
TFLOP for 30 s of audio. Independent of files, batching and Ray.

Source of names and arithmetic: NLP-UMUTeam/umuteam-speech-emotion at 3859029, read as facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, did_you_mean
from pipeline.models.networks.conformer import Conformer

AUDIO_MODES = ("audio", "mean", "concat", "multihead")
MODES = (*AUDIO_MODES, "text")

_CROSS_ATTENTION_HEADS = 8
"""Number of heads, fixed in the published model's code and absent from its config."""

UNEXPECTED_ALLOWED = ("wav2vec2_bert.masked_spec_embed",)
"""Tensors that a checkpoint may also contain: SpecAugment's vector is used only in training."""


@dataclass(frozen=True, slots=True)
class FusionOutput:
    """Results of one forward pass, in fp32 for every precision of the encoder.

    Attributes:
        logits: [B, num_labels].
        audio_embedding: [B, projector width], the mean over un-padded frames.
        fused_embedding: [B, head width], the classifier's input; in audio mode the audio embedding itself.
    """

    logits: Tensor
    audio_embedding: Tensor
    fused_embedding: Tensor


class EmotionHead(nn.Module):
    """dense -> tanh -> out_proj. `layernorm` is in the published checkpoints but is never applied."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, num_labels)
        self.layernorm = nn.LayerNorm(width)

    def forward(self, fused: Tensor) -> Tensor:
        """Return logits [B, num_labels] of fused embeddings [B, width]."""
        logits: Tensor = self.out_proj(torch.tanh(self.dense(fused)))
        return logits


class CrossAttentionHead(nn.Module):
    """One bidirectional cross attention between two vectors, which is affine.

    Each direction has one query and one key, so softmax over the one key is 1 and attention returns the value; the
    residual adds it again: twice the value. `norm`, the queries and the keys thus cancel out. They are loaded but
    not used, so that a strict load reports a checkpoint without them. For a batch of 2-D tensors the published code
    would attend across its items; this form gives each item its own result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.Wq = nn.Linear(width, width)
        self.Wk = nn.Linear(width, width)
        self.Wv = nn.Linear(width, width)
        self.Wq_reverse = nn.Linear(width, width)
        self.Wk_reverse = nn.Linear(width, width)
        self.Wv_reverse = nn.Linear(width, width)
        self.linear_out = nn.Linear(2 * width, width)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Combine two [B, width] into one [B, width]."""
        mixed: Tensor = self.linear_out(torch.cat((2 * self.Wv(audio), 2 * self.Wv_reverse(text)), dim=-1))
        return mixed


class MultiHeadFusion(nn.Module):
    """Eight cross attentions in parallel, projected back to one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([CrossAttentionHead(width) for _ in range(_CROSS_ATTENTION_HEADS)])
        self.proj = nn.Linear(_CROSS_ATTENTION_HEADS * width, width)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Combine two [B, width] into one [B, width]."""
        fused: Tensor = self.proj(torch.cat([head(audio, text) for head in self.heads], dim=-1))
        return fused

    @torch.no_grad()
    def folded(self) -> AffineFusion:
        """Return the same map as one matrix: heads and projection are affine, and so is their composition.

        42.5 million parameters become 1.2 million at the published width; computed in fp64, equal to 2e-6.
        """
        width = self.proj.out_features
        weight = torch.zeros(width, 2 * width, dtype=torch.float64)
        bias = self.proj.bias.double()
        heads = cast(list[CrossAttentionHead], self.heads)
        for head, block in zip(heads, self.proj.weight.double().chunk(len(heads), dim=1), strict=True):
            of_audio, of_text = (block @ half for half in head.linear_out.weight.double().chunk(2, dim=1))
            weight[:, :width] += 2 * of_audio @ head.Wv.weight.double()
            weight[:, width:] += 2 * of_text @ head.Wv_reverse.weight.double()
            values = of_audio @ head.Wv.bias.double() + of_text @ head.Wv_reverse.bias.double()
            bias = bias + 2 * values + block @ head.linear_out.bias.double()
        return AffineFusion(weight, bias)


class AffineFusion(nn.Module):
    """`MultiHeadFusion` as one affine map of the two concatenated vectors."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        width, both = weight.shape
        self.map = nn.Linear(both, width)
        self.map.weight.copy_(weight)
        self.map.bias.copy_(bias)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Combine two [B, width] into one [B, width]."""
        fused: Tensor = self.map(torch.cat((audio, text), dim=-1))
        return fused


class FusionModel(nn.Module):
    """Wav2Vec2-BERT, mean pooling, fusion with a text embedding and the emotion head.

    Args:
        config: a `Wav2Vec2BertConfig`; read, not kept.
        mode: one of `AUDIO_MODES`.
        text_width: width of the sentence encoder's embedding; None in audio mode.
    Raises: ConfigError for an unknown mode or widths that cannot be fused.
    """

    def __init__(self, config: Any, mode: str, text_width: int | None = None) -> None:  # noqa: ANN401 - transformers ships no types
        super().__init__()
        self.mode = mode
        self.text_width = text_width
        audio_width = config.classifier_proj_size
        head_width = fused_width(mode, audio_width, text_width)
        self.weighted = bool(config.use_weighted_layer_sum)
        self.wav2vec2_bert = Conformer(config)
        self.projector = nn.Linear(config.hidden_size, audio_width)
        self.classifier = EmotionHead(head_width, config.num_labels)
        if self.weighted:
            layers = config.num_hidden_layers + 1  # plus the projected features before the first layer
            self.layer_weights = nn.Parameter(torch.full((layers,), 1 / layers))
        if mode == "multihead":
            self.mult_attn_model: MultiHeadFusion | AffineFusion = MultiHeadFusion(audio_width)

    def fold(self) -> None:
        """Precompute the fusion as one matrix. Call it after the weights are loaded."""
        if self.mode == "multihead" and isinstance(self.mult_attn_model, MultiHeadFusion):
            self.mult_attn_model = self.mult_attn_model.folded()

    def set_precision(self, dtype: torch.dtype) -> None:
        """Convert the encoder, which is all of the cost, to `dtype`; pooling, fusion and head stay in fp32."""
        self.wav2vec2_bert.to(dtype)

    @property
    def bytes_per_frame(self) -> int:
        """Peak memory of a padded frame in a pass, without the weights."""
        mels = self.wav2vec2_bert.feature_projection.projection.in_features
        features = 2 * mels * torch.float32.itemsize  # raw and normalised
        summed = 3 * self.projector.in_features * torch.float32.itemsize if self.weighted else 0
        return self.wav2vec2_bert.bytes_per_frame + features + summed

    def forward(
        self, input_features: Tensor, attention_mask: Tensor, text_embedding: Tensor | None = None
    ) -> FusionOutput:
        """Classify a batch; each item's result equals its result alone, to float error.

        Args:
            input_features: [B, T, 160].
            attention_mask: [B, T], 1 on frames of the clip and 0 on padding, which is on the right.
            text_embedding: [B, text_width]; None in audio mode, which uses no text.
        """
        present = attention_mask.bool()
        padding = None if bool(present.all()) else ~present
        frames = self.projector(self._encode(input_features, padding))
        if padding is not None:
            frames = frames.masked_fill(padding.unsqueeze(-1), 0.0)
        audio = frames.sum(dim=1) / present.sum(dim=1, keepdim=True)
        fused = self._fuse(audio, text_embedding)
        return FusionOutput(logits=self.classifier(fused), audio_embedding=audio, fused_embedding=fused)

    def _encode(self, input_features: Tensor, padding: Tensor | None) -> Tensor:
        """Return encoder states [B, T, hidden] in fp32: of the last layer, or a weighted sum of all layers."""
        if not self.weighted:
            last: Tensor = self.wav2vec2_bert(input_features, padding)
            return last.float()
        summed = torch.zeros((), device=input_features.device)
        states = self.wav2vec2_bert.states(input_features, padding)
        for weight, state in zip(self.layer_weights.softmax(dim=-1), states, strict=True):
            summed = summed + weight * state.float()  # one sum, not a stack of 25 layers
        return summed

    def _fuse(self, audio: Tensor, text: Tensor | None) -> Tensor:
        """Combine the audio [B, D] and, except in audio mode, the text embedding into [B, head width]."""
        if self.mode == "audio":
            return audio
        if text is None:
            raise ValueError(f"mode {self.mode} needs a text embedding")
        if self.mode == "concat":
            return torch.cat((audio, text), dim=1)
        if self.mode == "mean":
            return torch.stack((audio, text), dim=1).mean(dim=1)
        fused: Tensor = self.mult_attn_model(audio, text)
        return fused


def fused_width(mode: str, audio_width: int, text_width: int | None) -> int:
    """Return the width of the head's input.

    Raises: ConfigError for an unknown mode, or for embeddings that `mode` cannot combine.
    """
    if mode not in AUDIO_MODES:
        raise ConfigError(f"mode {mode!r} is unknown; the modes are {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    if mode == "audio":
        return audio_width
    if text_width is None:
        raise ConfigError(f"mode {mode} fuses audio with text and needs a sentence encoder")
    if mode == "concat":
        return audio_width + text_width
    if audio_width != text_width:
        raise ConfigError(
            f"mode {mode} needs embeddings of one width: audio has {audio_width}, the sentence encoder {text_width}"
        )
    return audio_width

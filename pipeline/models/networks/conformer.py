"""Encoder of Wav2Vec2-BERT: conformer layers with causal convolutions, under the published parameter names.

Implemented here instead of imported from transformers, because its modelling modules import torch.distributed,
dynamo and more: 3.3 s of a core in every process, against a few milliseconds; and because its attention is replaced
anyway. Equal to transformers 5.23 in fp32 on CPU within 2e-6 (tests/models/test_conformer.py).

Source: Gulati et al. 2020, "Conformer", and transformers 5.23, `models/wav2vec2_bert`, read as facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models.networks.attention import QUERY_BLOCK, RelativeKeyAttention


class FeedForward(nn.Module):
    """Two linear maps with a SiLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, inner)
        self.output_dense = nn.Linear(inner, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform [B, L, D] to the same shape."""
        out: Tensor = self.output_dense(functional.silu(self.intermediate_dense(hidden_states)))
        return out


class Convolution(nn.Module):
    """Gated pointwise, causal depthwise and pointwise convolutions, which mix a frame with those before it."""

    def __init__(self, width: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, hidden_states: Tensor, padding: Tensor | None) -> Tensor:
        """Transform [B, L, D] to the same shape; padded frames count as zeros."""
        hidden_states = _zeroed(self.layer_norm(hidden_states), padding)
        gated = functional.glu(_pointwise(self.pointwise_conv1, hidden_states), dim=-1).transpose(1, 2)
        (kernel,) = self.depthwise_conv.kernel_size
        mixed = self.depthwise_conv(functional.pad(gated, (kernel - 1, 0))).transpose(1, 2)
        return _pointwise(self.pointwise_conv2, functional.silu(self.depthwise_layer_norm(mixed)))


class Layer(nn.Module):
    """Half a feed-forward, attention, convolution and half a feed-forward, each with a residual connection."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - transformers ships no types
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = FeedForward(width, config.intermediate_size)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = RelativeKeyAttention(
            width,
            config.num_attention_heads,
            left=config.left_max_position_embeddings,
            right=config.right_max_position_embeddings,
        )
        self.conv_module = Convolution(width, config.conv_depthwise_kernel_size, eps)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = FeedForward(width, config.intermediate_size)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden_states: Tensor, padding: Tensor | None) -> Tensor:
        """Transform [B, L, D] to the same shape."""
        hidden_states = hidden_states + 0.5 * self.ffn1(self.ffn1_layer_norm(hidden_states))
        hidden_states = hidden_states + self.self_attn(self.self_attn_layer_norm(hidden_states), padding)
        hidden_states = hidden_states + self.conv_module(hidden_states, padding)
        hidden_states = hidden_states + 0.5 * self.ffn2(self.ffn2_layer_norm(hidden_states))
        out: Tensor = self.final_layer_norm(hidden_states)
        return out


class FeatureProjection(nn.Module):
    """Projection of filter banks to the encoder's width."""

    def __init__(self, num_features: int, width: int, eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(num_features, eps=eps)
        self.projection = nn.Linear(num_features, width)

    def forward(self, features: Tensor) -> Tensor:
        """Transform [B, L, num_features] to [B, L, D]."""
        out: Tensor = self.projection(self.layer_norm(features))
        return out


class Stack(nn.Module):
    """The layers, under the checkpoints' parameter names."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])


class Conformer(nn.Module):
    """The encoder.

    Args:
        config: a `Wav2Vec2BertConfig`; not changed.
    Raises: ConfigError for features of no published emotion model: adapters, other positions or another activation.
    """

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        _require(config)
        self._config = config
        self.feature_projection = FeatureProjection(
            config.feature_projection_input_dim, config.hidden_size, config.layer_norm_eps
        )
        self.encoder = Stack(config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.feature_projection.projection.weight.dtype

    @property
    def bytes_per_frame(self) -> int:
        """Peak memory of a padded frame in a pass, without the weights: in the attention, or in a wide feed-forward.

        Counted without a fused attention kernel: such a pass computes in fp32 for every input type and holds a
        block's scores three times, 86 kB at the published size. With a fused kernel it is 54 kB in fp32 and 36 kB in
        bf16 (tests/models/test_memory.py counts).
        """
        config, size = self._config, torch.float32.itemsize
        width, heads = config.hidden_size, config.num_attention_heads
        distances = config.left_max_position_embeddings + config.right_max_position_embeddings + 1
        attended = 8 * width + heads * (distances + 3 * QUERY_BLOCK)
        return int(max(attended * size, (3 * width + 2 * config.intermediate_size) * self.dtype.itemsize))

    def states(self, input_features: Tensor, padding: Tensor | None) -> Iterator[Tensor]:
        """Yield the input of the first layer and the output of each layer, [B, L, D].

        Args:
            input_features: [B, L, 160].
            padding: bool [B, L], True after a clip's end; None when all are equally long.
        """
        hidden_states = _zeroed(self.feature_projection(input_features.to(self.dtype)), padding)
        yield hidden_states
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, padding)
            yield hidden_states

    def forward(self, input_features: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the last of `states`."""
        for last in self.states(input_features, padding):  # noqa: B007 - keeps one state at a time, not all of them
            pass
        return last


def _pointwise(convolution: nn.Conv1d, hidden_states: Tensor) -> Tensor:
    """Apply a convolution of width one as a linear map, which needs no transposing."""
    return functional.linear(hidden_states, convolution.weight.squeeze(-1))


def _zeroed(hidden_states: Tensor, padding: Tensor | None) -> Tensor:
    return hidden_states if padding is None else hidden_states.masked_fill(padding.unsqueeze(-1), 0.0)


def _require(config: Any) -> None:  # noqa: ANN401 - as above
    needed = {
        "position_embeddings_type": ("relative_key",),
        "hidden_act": ("swish", "silu"),
        "add_adapter": (False,),
        "use_intermediate_ffn_before_adapter": (False,),
    }
    for name, values in needed.items():
        if (given := getattr(config, name)) not in values:
            raise ConfigError(
                f"its config.json sets {name} to {given!r}; only {values[0]!r} is supported for Wav2Vec2-BERT"
            )
    if config.hidden_size % config.num_attention_heads or config.conv_depthwise_kernel_size % 2 == 0:
        raise ConfigError(
            f"its config has {config.num_attention_heads} heads for a width of {config.hidden_size} and a kernel of "
            f"{config.conv_depthwise_kernel_size}; heads must divide the width, and the kernel be odd"
        )

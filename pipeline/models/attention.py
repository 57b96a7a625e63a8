"""Self attention of Wav2Vec2-BERT (`relative_key` positions) without the (L, L, head_size) tensor.

Transformers 5.23 looks an embedding up for every pair of frames: 16.4 GB per layer for a 160 s clip (L = 8,000). But
distances are clamped to [-left, right] (64 and 8 as published), so a query meets only 73 different embeddings. Here
each query is multiplied with those 73 once, and the bias of a block of queries is spread from that small table: a
band around the diagonal, one value to the left of it and one to the right.
The same products are taken and summed alike: at head size 64 the very bits of the stock layer in fp32 on CPU (L = 60 to
4,000), and within 2e-6 at sizes so small that einsum takes another kernel.

Per layer at the published size: 131 MB of bias at 160 s where stock takes 16.4 GB; on one CPU thread the whole layer
runs at 1.0x the stock speed at 1 s, 1.2x at 10 s, 1.8x at 30 s, 6.5x at 80 s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

QUERY_BLOCK = 256
"""Queries per block: 64 and 128 were no faster on CPU; memory grows with it."""


class RelativeKeyAttention(Wav2Vec2BertSelfAttention):
    """Drop-in for the stock layer: same parameter names, same result."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: Tensor | None = None,
        **_: Any,  # noqa: ANN401 - what else the stock encoder hands down, unused by the stock layer in inference
    ) -> tuple[Tensor, None]:
        """Attend over [B, L, D].

        Args:
            attention_mask: as the stock encoder makes it for sdpa: None, or bool [B, 1, L, L], True where it looks.
            relative_position_embeddings: of other position types; None here.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_size)
        query = self.linear_q(hidden_states).view(heads).transpose(1, 2)
        key = self.linear_k(hidden_states).view(heads).transpose(1, 2)
        value = self.linear_v(hidden_states).view(heads).transpose(1, 2)
        table = (query @ self.distance_embedding.weight.to(query.dtype).T) * self.scaling  # [B, H, L, left + right + 1]
        length = query.shape[2]
        buffer = table.new_empty((*table.shape[:2], min(QUERY_BLOCK, length), length))  # one: fresh pages cost more
        # padding is the same for every query, so one row of the mask says it
        padding = None if attention_mask is None else ~attention_mask[:, :, :1]
        blocks = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            bias = buffer[:, :, : stop - start]
            self._spread(table, start, stop, bias)
            if padding is not None:
                bias.masked_fill_(padding, torch.finfo(bias.dtype).min)
            blocks.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop], key, value, attn_mask=bias, scale=self.scaling
                ).transpose(1, 2)
            )
        attended = torch.cat(blocks, dim=1).flatten(2)
        return self.linear_out(attended), None

    def _spread(self, table: Tensor, start: int, stop: int, bias: Tensor) -> None:
        """Write the bias [B, H, stop - start, L] of a block of queries, out of the products [B, H, L, columns]."""
        left, right = self.left_max_position_embeddings, self.right_max_position_embeddings
        length, products = table.shape[2], table[:, :, start:stop]
        first, last = max(start - left, 0), min(stop + right, length)  # keys beyond are clamped for every query here
        queries = torch.arange(start, stop, device=table.device)
        keys = torch.arange(first, last, device=table.device)
        column = (keys - queries[:, None]).clamp_(-left, right) + left
        bias[..., :first] = products[..., :1]
        bias[..., first:last] = products.gather(-1, column.expand(*products.shape[:2], -1, -1))
        bias[..., last:] = products[..., -1:]


def build_encoder(config: Wav2Vec2BertConfig) -> Wav2Vec2BertModel:
    """The stock model with its `relative_key` layers replaced; other position types (`relative`, `rotary`) stay stock.

    `config` is the encoder's own from here on: pass a copy.
    """
    config._attn_implementation = "sdpa"  # also decides the form of the mask the encoder hands to its layers
    encoder = Wav2Vec2BertModel(config)
    if config.position_embeddings_type == "relative_key":
        for layer in encoder.encoder.layers:
            layer.self_attn = RelativeKeyAttention(config)
    return encoder

"""BERT and RoBERTa for inference: one encoder and a classifier for each, under the checkpoints' parameter names.

Implemented here for the reason given in `conformer.py`: transformers' modelling modules cost more to import than
these models to run. Equal to transformers 5.23 in fp32 on CPU within 2e-6 (tests/models/test_bert.py).

Source: Devlin et al. 2018; Liu et al. 2019; transformers 5.23, `models/bert` and `models/roberta`, read as facts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
"""Model types with RoBERTa's architecture, which counts positions from pad_token_id + 1."""


class SelfAttention(nn.Module):
    """Multi-head self attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over [B, L, D]; mask: bool [B, 1, 1, L], False on padding."""
        heads = (*hidden_states.shape[:-1], self.num_heads, -1)
        query, key, value = (
            project(hidden_states).view(heads).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class Added(nn.Module):
    """A linear map with a residual connection and layer normalisation."""

    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, inner: Tensor, hidden_states: Tensor) -> Tensor:
        """Map `inner`, add `hidden_states` and normalise: [B, L, D]."""
        out: Tensor = self.LayerNorm(self.dense(inner) + hidden_states)
        return out


class Layer(nn.Module):
    """Attention and a feed-forward, each followed by a residual sum and normalisation."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - transformers ships no types
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(width, config.num_attention_heads), "output": Added(width, width, eps)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Added(inner, width, eps)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """Transform [B, L, D] to the same shape."""
        attended = self.attention["output"](self.attention["self"](hidden_states, mask), hidden_states)
        out: Tensor = self.output(functional.gelu(self.intermediate["dense"](attended)), attended)
        return out


class Stack(nn.Module):
    """The layers, under the checkpoints' parameter names."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])


class Pooler(nn.Module):
    """A tanh layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        """Transform [B, D] to the same shape."""
        return torch.tanh(self.dense(first))


class Embeddings(nn.Module):
    """Embeddings of words and positions, plus the one token type of a single text."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return [B, L, D] for word ids [B, L] and positions [B or 1, L]."""
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        out: Tensor = self.LayerNorm(summed + self.position_embeddings(positions))
        return out


class Bert(nn.Module):
    """The encoder.

    Args:
        config: a `BertConfig` or `RobertaConfig`; read, not kept.
        pooled: whether to add the pooler, which only BERT's own classifier uses.
    Raises: ConfigError for features of no published emotion model: another activation, other positions, a decoder.
    """

    def __init__(self, config: Any, *, pooled: bool = False) -> None:  # noqa: ANN401 - as above
        super().__init__()
        _require(config)
        self.padding_id = config.pad_token_id if config.model_type in ROBERTAS else None
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        if pooled:
            self.pooler = Pooler(config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states [B, L, D].

        Args:
            input_ids: int64 [B, L].
            attention_mask: int64 [B, L], 0 on padding, which is on the right.
        """
        mask = None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None]
        hidden_states: Tensor = self.embeddings(input_ids, self._positions(input_ids))
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

    def _positions(self, input_ids: Tensor) -> Tensor:
        if self.padding_id is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        words = (input_ids != self.padding_id).long()  # RoBERTa counts tokens other than padding, from pad_token_id + 1
        positions: Tensor = words.cumsum(dim=1) * words + self.padding_id
        return positions


class BertClassifier(nn.Module):
    """`BertForSequenceClassification`: a tanh layer on the first token, and a linear map."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.bert = Bert(config, pooled=True)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token's last hidden state [B, D], and logits [B, num_labels]."""
        first = self.bert(input_ids, attention_mask)[:, 0]
        return first, self.classifier(self.bert.pooler(first))


class RobertaClassifier(nn.Module):
    """`RobertaForSequenceClassification`: as `BertClassifier`, under other parameter names."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.roberta = Bert(config)
        width = config.hidden_size
        self.classifier = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, config.num_labels)}
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as `BertClassifier.forward`."""
        first = self.roberta(input_ids, attention_mask)[:, 0]
        return first, self.classifier["out_proj"](torch.tanh(self.classifier["dense"](first)))


def _require(config: Any) -> None:  # noqa: ANN401 - as above
    needed = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, value in needed.items():
        if (given := getattr(config, name, value)) != value:
            raise ConfigError(f"its config.json sets {name} to {given!r}; only {value!r} is supported")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(f"{config.num_attention_heads} heads do not divide its width of {config.hidden_size}")

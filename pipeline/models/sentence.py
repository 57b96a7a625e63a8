"""Text models for emotion: a frozen BERT whose [CLS] is fused with audio, or a classifier of text alone.

Texts are sorted by length and padded to the longest of their batch; the reference pads each to 512 tokens, which
costs 17 times as much at 15 tokens and returns the same vector to 1e-6. BERT base takes about 0.09 s for one
sentence on one CPU thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.batching import Batcher
from pipeline.models.checkpoints.configs import building, transformers_config
from pipeline.models.checkpoints.weights import (
    Checkpoint,
    check,
    load_state_dict,
    load_strict,
    shapes_only,
    without_values,
)
from pipeline.models.networks.bert import ROBERTAS, Bert, BertClassifier, RobertaClassifier
from pipeline.stats import BatchFigures

MAX_TOKENS = 512
"""Tokens after which the reference truncates the encoder's text. A model with fewer positions truncates sooner."""

ENCODERS = ("bert", "roberta")
"""Model types of sentence encoders."""
_STOCK = ("distilbert", "deberta-v2", "electra")
"""Types of classifiers that run in transformers' own classes."""
CLASSIFIERS = ("bert", *ROBERTAS, *_STOCK)
"""Model types of text classifiers."""
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
"""Vocabulary files. Every BERT (vocab.txt) and RoBERTa (vocab.json) has at least one of them."""
_MAX_TEXTS = 32
_MAX_PADDED_TOKENS = 8_192
"""Tokens per batch: keeps BERT base's hidden states under 100 MB."""

_UNEXPECTED = ("cls.*", "lm_head.*", "pooler.*", "*.pooler.*", "*embeddings.position_ids")
"""Tensors that are not used: pre-training heads, the pooler ([CLS] is used raw) and an index buffer of older
transformers."""


@dataclass(frozen=True, slots=True)
class TextOutput:
    """Results of N texts, in their order.

    Attributes:
        embedding: float32 [N, D], last hidden state of the first token.
        truncated: bool [N], True when the text had more tokens than the model takes.
        logits: float32 [N, num_labels] of a classifier; None for an encoder.
    """

    embedding: NDArray[np.float32]
    truncated: NDArray[np.bool_]
    logits: NDArray[np.float32] | None


class TextModel:
    """One text checkpoint, loaded strictly.

    Args:
        classify: True to load the emotion head (text mode), False for the bare encoder.
        dtype: type of the weights; results are float32.
    Raises: ConfigError when the files do not form such a model.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, classify: bool, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        kind = _model_type(checkpoint, classify)
        prefix = None if classify else f"{kind}."
        self._tokenizer = _tokenizer(checkpoint)
        config = _config(checkpoint, self._tokenizer)
        self._stock = kind in _STOCK
        with without_values() if self._stock else shapes_only():
            model = _build(checkpoint, config, classify)
        state = load_state_dict(checkpoint, dtype=dtype)
        load_strict(model, state, source=checkpoint.spec, allow_unexpected=_UNEXPECTED, base_prefix=prefix)
        self._model = model.eval().to(device)
        self._padding_id = int(config.pad_token_id or 0)
        self._num_labels = int(config.num_labels) if classify else None
        self._device = device
        self._batcher = Batcher(max_batch=_MAX_TEXTS, max_padded=_MAX_PADDED_TOKENS, device=str(device))
        positions = int(config.max_position_embeddings)
        if kind in ROBERTAS:
            positions -= config.pad_token_id + 1  # RoBERTa counts positions from pad_token_id + 1
        self.max_tokens = min(positions, self._tokenizer.model_max_length, *(() if classify else (MAX_TOKENS,)))
        self.width = int(config.hidden_size)

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call; lengths are tokens."""
        return self._batcher.take_figures()

    @torch.inference_mode()
    def run(self, texts: Sequence[str]) -> TextOutput:
        """Embed the texts, and classify them with a head. An empty text is the two special tokens. Order is kept."""
        if not texts:
            none = None if self._num_labels is None else np.zeros((0, self._num_labels), np.float32)
            return TextOutput(np.zeros((0, self.width), np.float32), np.zeros(0, np.bool_), none)
        ids, truncated = self._tokenised(texts)
        embedding = np.empty((len(texts), self.width), np.float32)
        logits = None if self._num_labels is None else np.empty((len(texts), self._num_labels), np.float32)
        lengths = [len(tokens) for tokens in ids]
        for batch, (cls, head) in self._batcher.run(lengths, lambda batch: self._forward([ids[i] for i in batch])):
            embedding[batch] = cls.float().cpu().numpy()
            if logits is not None and head is not None:
                logits[batch] = head.float().cpu().numpy()
        return TextOutput(embedding, truncated, logits)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, the special ones included, that the model uses."""
        return [len(tokens) for tokens in self._tokenised(texts)[0]] if texts else []

    def _tokenised(self, texts: Sequence[str]) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """Return the token ids of each text, and True for each text that was cut."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens, padding=False)
        return encoded["input_ids"], np.array([bool(encoding.overflowing) for encoding in encoded.encodings])

    def _forward(self, ids: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        longest = max(len(tokens) for tokens in ids)
        input_ids = torch.full((len(ids), longest), self._padding_id)
        attention_mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
        input_ids, attention_mask = input_ids.to(self._device), attention_mask.to(self._device)
        if self._stock:
            stock = self._model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return stock.hidden_states[-1][:, 0], stock.logits
        output = self._model(input_ids, attention_mask)
        return output if self._num_labels is not None else (output[:, 0], None)


def check_text_model(checkpoint: Checkpoint, *, classify: bool) -> None:
    """Check that `TextModel` would load, without loading weights. Raises: ConfigError."""
    kind = _model_type(checkpoint, classify)
    prefix = None if classify else f"{kind}."
    config = _config(checkpoint, _tokenizer(checkpoint))
    check(
        checkpoint,
        lambda: _build(checkpoint, config, classify),
        allow_unexpected=_UNEXPECTED,
        base_prefix=prefix,
    )


def text_width(checkpoint: Checkpoint) -> int:
    """Return the width of a text checkpoint's first token, from its config alone."""
    config = checkpoint.read_json("config.json")
    width = config.get("dim" if config.get("model_type") == "distilbert" else "hidden_size")
    if not isinstance(width, int) or width <= 0:
        raise ConfigError(
            f"config.json of model {checkpoint.spec} gives hidden_size {width!r}; a positive int is needed"
        )
    return width


def _model_type(checkpoint: Checkpoint, classify: bool) -> str:
    model_type = checkpoint.read_json("config.json").get("model_type")
    supported = CLASSIFIERS if classify else ENCODERS
    if model_type not in supported:
        raise ConfigError(
            f"text model {checkpoint.spec} is of type {model_type!r}; supported are {', '.join(supported)}"
        )
    return str(model_type)


def _config(checkpoint: Checkpoint, tokenizer: Any) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the transformers config. Raises: ConfigError when it makes none, or does not fit the tokenizer."""
    config = transformers_config(checkpoint)
    if config.model_type in ROBERTAS and not isinstance(config.pad_token_id, int):
        raise ConfigError(
            f"text model {checkpoint.spec} has no pad_token_id in its config.json; {config.model_type} counts positions from it"
        )
    # tokens that were added later occur in no text unless it spells them out
    largest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    if largest >= config.vocab_size:
        raise ConfigError(
            f"the tokenizer of text model {checkpoint.spec} gives ids up to {largest}; the model has {config.vocab_size} tokens"
        )
    return config


def _build(checkpoint: Checkpoint, config: Any, classify: bool) -> nn.Module:  # noqa: ANN401 - transformers ships no types
    kind = _model_type(checkpoint, classify)
    with building(f"text model {checkpoint.spec}"):
        if kind in _STOCK:
            from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

            stock: nn.Module = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
            return stock
        if not classify:
            return Bert(config)
        return RobertaClassifier(config) if kind in ROBERTAS else BertClassifier(config)


def _tokenizer(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - as above
    """Load the tokenizer that tokenizer.json describes, or the one that transformers makes from vocabulary files.

    transformers 5 does not take tokenizer.json as it is: its class for the model type rebuilds the tokenizer from the
    vocabulary, and one of another kind gets other ids or an error.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # without these files transformers 5 silently creates a tokenizer to which every word is unknown
    if not any((checkpoint.directory / name).is_file() for name in _VOCABULARIES):
        raise ConfigError(
            f"text model {checkpoint.spec} has no tokenizer: {checkpoint.directory} contains none of {', '.join(_VOCABULARIES)}"
        )
    described = checkpoint.directory / _VOCABULARIES[0]
    try:
        if described.is_file():
            if not isinstance(checkpoint.read_json(described.name).get("model"), dict):
                raise ValueError(f"{described.name} describes no model")
            settings = checkpoint.directory / "tokenizer_config.json"
            longest = checkpoint.read_json(settings.name).get("model_max_length") if settings.is_file() else None
            return PreTrainedTokenizerFast(tokenizer_file=str(described), model_max_length=longest)
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise ConfigError(f"the tokenizer of text model {checkpoint.spec} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"text model {checkpoint.spec} has no fast tokenizer (tokenizer.json)")
    return tokenizer

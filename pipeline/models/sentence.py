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
from pipeline.models.checkpoints.weights import Checkpoint, check, load_state_dict, load_strict, shapes_only
from pipeline.models.networks.bert import Bert, BertClassifier, RobertaClassifier
from pipeline.stats import BatchFigures

MAX_TOKENS = 512
"""Tokens after which the reference truncates the encoder's text. A model with fewer positions truncates sooner."""

_MODEL_TYPES = ("bert", "roberta")
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
        prefix = None if classify else f"{_model_type(checkpoint)}."
        self._tokenizer = _tokenizer(checkpoint)
        config = _config(checkpoint)
        with shapes_only():
            model = _build(checkpoint, config, classify)
        state = load_state_dict(checkpoint, dtype=dtype)
        load_strict(model, state, source=checkpoint.spec, allow_unexpected=_UNEXPECTED, base_prefix=prefix)
        self._model = model.eval().to(device)
        self._padding_id = int(config.pad_token_id or 0)
        self._num_labels = int(config.num_labels) if classify else None
        self._device = device
        self._batcher = Batcher(max_batch=_MAX_TEXTS, max_padded=_MAX_PADDED_TOKENS, device=str(device))
        positions = int(config.max_position_embeddings)
        if config.model_type == "roberta":
            positions -= config.pad_token_id + 1  # RoBERTa counts positions from pad_token_id + 1
        self.max_tokens = min(MAX_TOKENS, positions, self._tokenizer.model_max_length)
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
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens, padding=False)
        ids: list[list[int]] = encoded["input_ids"]
        truncated = np.array([bool(encoding.overflowing) for encoding in encoded.encodings])
        embedding = np.empty((len(texts), self.width), np.float32)
        logits = None if self._num_labels is None else np.empty((len(texts), self._num_labels), np.float32)
        lengths = [len(tokens) for tokens in ids]
        for batch, (cls, head) in self._batcher.run(lengths, lambda batch: self._forward([ids[i] for i in batch])):
            embedding[batch] = cls.float().cpu().numpy()
            if logits is not None and head is not None:
                logits[batch] = head.float().cpu().numpy()
        return TextOutput(embedding, truncated, logits)

    def _forward(self, ids: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        longest = max(len(tokens) for tokens in ids)
        input_ids = torch.full((len(ids), longest), self._padding_id)
        attention_mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
        output = self._model(input_ids.to(self._device), attention_mask.to(self._device))
        return output if self._num_labels is not None else (output[:, 0], None)


def check_text_model(checkpoint: Checkpoint, *, classify: bool) -> None:
    """Check that `TextModel` would load, without loading weights. Raises: ConfigError."""
    prefix = None if classify else f"{_model_type(checkpoint)}."
    _tokenizer(checkpoint)
    check(
        checkpoint,
        lambda: _build(checkpoint, _config(checkpoint), classify),
        allow_unexpected=_UNEXPECTED,
        base_prefix=prefix,
    )


def text_width(checkpoint: Checkpoint) -> int:
    """Return the width of a text checkpoint's [CLS], from its config alone."""
    width = checkpoint.read_json("config.json").get("hidden_size")
    if not isinstance(width, int) or width <= 0:
        raise ConfigError(
            f"config.json of model {checkpoint.spec} gives hidden_size {width!r}; a positive int is needed"
        )
    return width


def _model_type(checkpoint: Checkpoint) -> str:
    model_type = checkpoint.read_json("config.json").get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ConfigError(
            f"text model {checkpoint.spec} is of type {model_type!r}; supported are {', '.join(_MODEL_TYPES)}"
        )
    return str(model_type)


def _config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - transformers ships no types
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(f"config.json of text model {checkpoint.spec} does not describe a model: {error}") from error


def _build(checkpoint: Checkpoint, config: Any, classify: bool) -> nn.Module:  # noqa: ANN401 - as above
    kinds = {"bert": BertClassifier, "roberta": RobertaClassifier} if classify else {"bert": Bert, "roberta": Bert}
    try:
        return kinds[_model_type(checkpoint)](config)
    except (ConfigError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"text model {checkpoint.spec} cannot be used: {error}") from error


def _tokenizer(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - transformers ships no types
    from transformers import AutoTokenizer

    _model_type(checkpoint)  # first: a wrong model type may be the reason for a missing tokenizer
    # without these files transformers 5 silently creates a tokenizer to which every word is unknown
    if not any((checkpoint.directory / name).is_file() for name in _VOCABULARIES):
        raise ConfigError(
            f"text model {checkpoint.spec} has no tokenizer: {checkpoint.directory} contains none of {', '.join(_VOCABULARIES)}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise ConfigError(f"the tokenizer of text model {checkpoint.spec} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"text model {checkpoint.spec} has no fast tokenizer (tokenizer.json)")
    return tokenizer

"""Classifiers of text alone: transformers' sequence classification, and UMUTeam's text mode, which is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import PRECISIONS, Batch, Declaration, Output
from pipeline.models.sentence import TextModel, check_text_model, text_width


class TextClassification:
    """A checkpoint of one of `sentence.CLASSIFIERS`. See `protocol.Family`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @cached_property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from configs alone."""
        widths = {"text_embedding": text_width(self._checkpoint)}
        return Declaration(inputs=("text",), heads=(head_of(self._checkpoint),), embedding_widths=widths)

    def check(self) -> None:
        """Check that `load` would succeed: config, tokenizer, every tensor's name and shape."""
        check_text_model(self._checkpoint, classify=True)

    def load(self, *, device: torch.device, precision: str) -> LoadedText:
        """Load the weights strictly."""
        model = TextModel(self._checkpoint, classify=True, device=device, dtype=PRECISIONS[precision])
        return LoadedText(self.declaration, model)


class LoadedText:
    """A loaded text classifier. See `protocol.EmotionModel`."""

    def __init__(self, declaration: Declaration, model: TextModel) -> None:
        self.declaration = declaration
        self.text = model

    def lengths(self, batch: Batch) -> Sequence[float]:
        """Return the number of tokens of each text that the model uses."""
        return self.text.lengths(batch.texts)

    def forward(self, batch: Batch) -> Output:
        """Compute one batch. The embedding is the last hidden state of the first token."""
        read = self.text.run(batch.texts)
        logits = () if read.logits is None else (torch.from_numpy(read.logits),)
        return Output(logits, {"text_embedding": torch.from_numpy(read.embedding)}, tuple(read.truncated.tolist()))

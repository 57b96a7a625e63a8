"""One loaded emotion model on many utterances: batches by its declared policy, probabilities, and finite results.

The caller passes one shard's utterances at once. They are sorted by length, batched, run, and returned in input order.
A row's results do not depend on the other rows, to 1e-4 in fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.batching import Batcher
from pipeline.models.families.protocol import Batch, Batching, EmotionModel, Head, HeadKind
from pipeline.models.memory import memory_left
from pipeline.stats import BatchFigures

_GPU_BATCH = 32
_MAX_BATCH_S = 960.0
"""Largest number of padded seconds in one pass, memory permitting: 32 clips of 30 s keep any device busy; 4 GB in
fp32."""
_OF_MEMORY = 0.8
"""Fraction of the free memory used for planning: allocators fragment it, and filter banks and texts need some."""
_MAX_TEXTS, _MAX_PADDED_TOKENS = 32, 8_192
"""Texts and padded tokens in one pass of a text model: keeps BERT base's hidden states under 100 MB."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Results:
    """Results of N utterances in input order.

    Attributes:
        logits: float32 [N, len(head.names)] for each head, divided by the temperature where the head is not a
            regression.
        outputs: the same after softmax or sigmoid; a regression's values as they are. Finite.
        embeddings: float32 [N, width] for each declared embedding column.
        truncated: bool [N], True when audio past the model's limit was ignored.
        text_truncated: bool [N], True when text past the model's limit was ignored.
    """

    logits: tuple[NDArray[np.float32], ...]
    outputs: tuple[NDArray[np.float32], ...]
    embeddings: dict[str, NDArray[np.float32]]
    truncated: NDArray[np.bool_]
    text_truncated: NDArray[np.bool_]


class Runner:
    """A loaded model and its batch sizes.

    Args:
        model: any `families.protocol.EmotionModel`.
        device: torch's device name.
        max_batch: utterances in one forward pass. Default: 32 on a GPU, on CPU what the model declares.
        max_batch_s: seconds of audio, after padding, in one forward pass of more than one utterance. Default: as
            many as fit in the memory left at the first pass, at most 960.
        gpu_share: this process's fraction of the card.
        temperature: divisor of the logits before softmax or sigmoid; their order does not change.
    """

    def __init__(
        self,
        model: EmotionModel,
        *,
        device: str = "cpu",
        max_batch: int | None = None,
        max_batch_s: float | None = None,
        gpu_share: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self._device = device
        self._max_batch, self._max_batch_s = max_batch, max_batch_s
        self._gpu_share, self._temperature = gpu_share, temperature

    def run(self, waveforms: Sequence[NDArray[np.float32]] | None, texts: Sequence[str | None] | None) -> Results:
        """Run the model once on every utterance.

        Args:
            waveforms: float32 [num_samples] at 16 kHz, of the model's `min_samples` or more; ignored by a text model.
            texts: one each, possibly empty; ignored by a model without text.
        Raises: ValueError, before any work, naming an utterance that cannot be run; FloatingPointError when the model
            returns numbers that are not finite for one.
        """
        batch = self._checked(waveforms, texts)
        logits, embeddings, text_truncated = self._forward(batch)
        outputs = tuple(
            _activated(values, head) for values, head in zip(logits, self.model.declaration.heads, strict=True)
        )
        longest = self.model.declaration.max_samples
        cut = [longest is not None and len(waveform) > longest for waveform in batch.waveforms]
        return Results(logits, outputs, embeddings, np.array(cut or [False] * len(batch), np.bool_), text_truncated)

    @cached_property
    def batcher(self) -> Batcher:
        """The batcher, created at the first pass, when all models are loaded and the memory left is known."""
        declared = self.model.declaration
        if "audio" not in declared.inputs:
            return Batcher(max_batch=self._max_batch or _MAX_TEXTS, max_padded=_MAX_PADDED_TOKENS, device=self._device)
        max_batch = self._max_batch or (declared.cpu_batch if self._device == "cpu" else _GPU_BATCH)
        padded_s = self._max_batch_s
        if padded_s is None:
            left = memory_left(self._device, self._gpu_share)
            padded_s = (
                min(_MAX_BATCH_S, _OF_MEMORY * left / declared.bytes_per_s) if declared.bytes_per_s else _MAX_BATCH_S
            )
            _log.info(
                "batches of %.0f s: %.1f MB a second, %.1f GB left", padded_s, declared.bytes_per_s / 1e6, left / 1e9
            )
        return Batcher(
            max_batch=1 if declared.batching is Batching.ALONE else max_batch,
            max_padded=padded_s,
            device=self._device,
            equal=declared.batching is Batching.EQUAL,
        )

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call; lengths are seconds, for a text model tokens."""
        return self.batcher.take_figures()

    @torch.inference_mode()
    def _forward(
        self, batch: Batch
    ) -> tuple[tuple[NDArray[np.float32], ...], dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
        declared = self.model.declaration
        logits = tuple(np.empty((len(batch), len(head.names)), np.float32) for head in declared.heads)
        embeddings = {
            name: np.empty((len(batch), width), np.float32) for name, width in declared.embedding_widths.items()
        }
        text_truncated = np.zeros(len(batch), np.bool_)
        lengths = self.model.lengths(batch)
        for rows, output in self.batcher.run(lengths, lambda rows: self.model.forward(batch.take(rows))):
            for ours, theirs in zip(logits, output.logits, strict=True):
                _store(ours, rows, theirs, "logits")
            for name, values in embeddings.items():
                _store(values, rows, output.embeddings[name], name)
            if output.text_truncated:
                text_truncated[rows] = output.text_truncated
        scaled = [
            values if head.kind is HeadKind.REGRESSION else values / np.float32(self._temperature)
            for values, head in zip(logits, declared.heads, strict=True)
        ]
        return tuple(scaled), embeddings, text_truncated

    def _checked(self, waveforms: Sequence[NDArray[np.float32]] | None, texts: Sequence[str | None] | None) -> Batch:
        declared = self.model.declaration
        audio = _checked_waveforms(waveforms, declared.min_samples) if "audio" in declared.inputs else ()
        text = _checked_texts(texts) if "text" in declared.inputs else ()
        if len(declared.inputs) > 1 and len(audio) != len(text):
            raise ValueError(f"{len(audio)} waveforms came with {len(text)} texts")
        return Batch(audio, text)


def _store(target: NDArray[np.float32], rows: list[int], values: Tensor, name: str) -> None:
    """Store a batch's values. Raises: ValueError for another shape than declared, which numpy might broadcast."""
    expected = (len(rows), target.shape[1])
    if tuple(values.shape) != expected:
        raise ValueError(f"the model returns {name} of shape {list(values.shape)} where {list(expected)} is declared")
    target[rows] = values.float().cpu().numpy()


def _activated(logits: NDArray[np.float32], head: Head) -> NDArray[np.float32]:
    """Return softmax, sigmoid or the values themselves. Raises: FloatingPointError when one is not finite."""
    values = torch.from_numpy(logits)
    if head.kind is HeadKind.SOFTMAX:
        values = values.softmax(dim=-1)
    elif head.kind is HeadKind.SIGMOID:
        values = values.sigmoid()
    outputs: NDArray[np.float32] = values.numpy()
    broken = np.flatnonzero(~np.isfinite(outputs).all(axis=-1))
    if len(broken):
        raise FloatingPointError(f"the model returned scores that are not finite for utterances {broken[:10].tolist()}")
    return outputs


def _checked_texts(texts: Sequence[str | None] | None) -> list[str]:
    absent = [index for index, text in enumerate(texts or ()) if text is None]
    if texts is None or absent:
        raise ValueError(f"this model needs texts; utterances without text: {absent[:10] or 'all'}")
    return [text for text in texts if text is not None]


def _checked_waveforms(
    waveforms: Sequence[NDArray[np.float32]] | None, min_samples: int
) -> Sequence[NDArray[np.float32]]:
    if waveforms is None:
        raise ValueError("this model needs waveforms")
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or len(waveform) < min_samples:
            raise ValueError(
                f"utterance {index} has a waveform of shape {waveform.shape}; one channel of at least {min_samples} "
                "samples is needed"
            )
    return waveforms

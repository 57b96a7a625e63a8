"""Emotion recognition: from waveforms and texts to labels, scores and embeddings in columns, without files or Ray.

The caller passes one shard's utterances at once. `pipeline.models.runner` batches them; here the outputs of the model's
head become labels, scores, confidence and margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import require_precision
from pipeline.config.labels import LabelMaps, emotion_by
from pipeline.models.checkpoints.modes import check, embedding_widths, labels_of
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.choice import family_of
from pipeline.models.families.protocol import PRECISIONS, HeadKind, require_declared
from pipeline.models.families.umuteam import MIN_SAMPLES
from pipeline.models.runner import Results, Runner
from pipeline.models.semantics import Dimension, meaning_of, require_softmax
from pipeline.schema import THRESHOLD
from pipeline.stats import BatchFigures

__all__ = ["MIN_SAMPLES", "PRECISIONS", "EmotionRecogniser", "Recognised", "check", "embedding_widths", "labels_of"]


@dataclass(frozen=True, slots=True)
class Recognised:
    """Results of N utterances in input order, in columns that Arrow accepts unchanged.

    Attributes:
        label_names: the columns of `scores`, named as in the checkpoint; empty for a model of regressions alone.
        emotions: the emotion of each of `label_names`, or None.
        labels: the best label of each utterance, N of `label_names`; None without labels.
        above: the labels above the threshold, for each utterance; None unless the labels are independent (sigmoid).
        scores: float32 [N, len(label_names)], probabilities, finite.
        confidence: float32 [N], the best score; NaN without labels.
        margin: float32 [N], the best score minus the second, or the score of the only label; NaN without labels.
        dimensions: float32 [N] for each of `schema.DIMENSIONS` that the model predicts, finite.
        scales: the model's own scale of the dimensions that state one, lowest and highest value; these are mapped to 0..1.
        truncated: bool [N], True when audio past the model's limit (160 s for most) was ignored.
        text_truncated: bool [N], True when text past the model's positions was ignored.
        audio_embedding, text_embedding, fused_embedding: float32 [N, D]; None where the mode does not have it.
    """

    label_names: tuple[str, ...]
    emotions: tuple[str | None, ...]
    labels: list[str | None]
    above: list[list[str]] | None
    scores: NDArray[np.float32]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]
    dimensions: Mapping[str, NDArray[np.float32]]
    scales: Mapping[str, tuple[float, float]]
    truncated: NDArray[np.bool_]
    text_truncated: NDArray[np.bool_]
    audio_embedding: NDArray[np.float32] | None = None
    text_embedding: NDArray[np.float32] | None = None
    fused_embedding: NDArray[np.float32] | None = None


class EmotionRecogniser:
    """The models of one mode for one language, loaded once.

    Args:
        mode: one of `fusion.MODES`.
        fusion: a checkpoint of that mode, of any family in `pipeline.models.families`.
        sentence_encoder: for mean, concat and multihead; audio and text ignore it.
        device: torch's device name.
        precision: precision of the whole model; in UMUTeam's speech models of the audio encoder, while sentence
            encoder, pooling, fusion and head stay in fp32. Softmax is always in fp32. bf16 changes scores by 0.04 to
            0.12; int8 (on CPU, UMUTeam's speech models) changed them by 0.005 with trained and 0.05 with random
            weights. Count the label flips before using either.
        max_batch: utterances in one forward pass. Default: 32 on a GPU; on CPU 1, or 8 for a model narrower than
            512. Always 1 in int8, or a clip's scores would depend on the others.
        max_batch_s: seconds of audio, after padding, in one forward pass of more than one utterance. Default: as
            many as fit in the memory left at the first pass, at most 960.
        gpu_share: this process's fraction of the card.
        num_threads: torch's threads, for this whole process; 0 or None leaves them unchanged.
        temperature: divisor of the logits before the softmax; labels and the order of scores do not change.
        language: primary tag of the model's language, which selects the label map.
        label_map: the user's label maps by language, on top of the built-in one.
    Raises: ConfigError when the checkpoints do not match the mode, or a temperature is for a model without softmax.
    """

    def __init__(
        self,
        mode: str,
        fusion: Checkpoint,
        sentence_encoder: Checkpoint | None = None,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        max_batch: int | None = None,
        max_batch_s: float | None = None,
        gpu_share: float = 1.0,
        num_threads: int | None = None,
        temperature: float = 1.0,
        language: str = "en",
        label_map: LabelMaps | None = None,
    ) -> None:
        family = family_of(mode, fusion, sentence_encoder)
        require_precision(precision, mode=mode, device=device)
        if num_threads:
            torch.set_num_threads(num_threads)
        require_declared(family.declaration, precision, fusion.spec)
        self.mode = mode
        heads = family.declaration.heads
        self._meaning = meaning_of(heads, lambda label: emotion_by(label_map, language, label), fusion.spec)
        require_softmax(self._meaning, fusion.spec, calibrated=temperature != 1.0)
        self.label_names, self.emotions = self._meaning.labels, self._meaning.emotions
        self.embedding_widths = dict(family.declaration.embedding_widths)
        self.runner = Runner(
            family.load(device=torch.device(device), precision=precision),
            device=device,
            max_batch=max_batch,
            max_batch_s=max_batch_s,
            gpu_share=gpu_share,
            temperature=temperature,
        )

    def recognise(
        self, waveforms: Sequence[NDArray[np.float32]] | None, texts: Sequence[str | None] | None
    ) -> Recognised:
        """Label utterances.

        Args:
            waveforms: float32 [num_samples] at 16 kHz, of the model's shortest length or more; ignored in text mode.
            texts: one each, which may be empty; ignored in audio mode.
        Raises: ValueError, before any work, naming an utterance that cannot be run; FloatingPointError when a model
            returns no finite scores for one.
        """
        results = self.runner.run(waveforms, texts)
        labelled: dict[str, Any] = self._labelled(results)
        return Recognised(
            label_names=self.label_names,
            emotions=self.emotions,
            **labelled,
            dimensions={each.column: _scaled(results.outputs[each.head], each) for each in self._meaning.dimensions},
            scales={each.column: each.scale for each in self._meaning.dimensions if each.scale is not None},
            truncated=results.truncated,
            text_truncated=results.text_truncated,
            audio_embedding=results.embeddings.get("audio_embedding"),
            text_embedding=results.embeddings.get("text_embedding"),
            fused_embedding=results.embeddings.get("fused_embedding"),
        )

    def _labelled(self, results: Results) -> dict[str, Any]:
        """Return labels, above, scores, confidence and margin."""
        meaning, count = self._meaning, len(results.truncated)
        if meaning.head is None:
            nothing = np.full(count, np.nan, np.float32)
            scores = np.empty((count, 0), np.float32)
            return {"labels": [None] * count, "above": None, "scores": scores, "confidence": nothing, "margin": nothing}
        logits, scores = results.logits[meaning.head], results.outputs[meaning.head]
        ranked = np.sort(scores, axis=-1)
        names = meaning.labels
        above = None
        if meaning.kind is HeadKind.SIGMOID:
            above = [[name for name, score in zip(names, row, strict=True) if score > THRESHOLD] for row in scores]
        return {
            # by the logits: a temperature may bring scores so close that they tie
            "labels": [names[best] for best in logits.argmax(axis=-1)],
            "above": above,
            "scores": scores,
            "confidence": ranked[:, -1].copy(),
            "margin": ranked[:, -1] - ranked[:, -2] if len(names) > 1 else ranked[:, -1].copy(),
        }

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call: batches of audio, in text mode of texts, and the seconds of both."""
        return self.runner.take_figures()


def _scaled(values: NDArray[np.float32], dimension: Dimension) -> NDArray[np.float32]:
    """Return one output of a regression [N]; a stated scale is mapped to 0..1."""
    own = values[:, dimension.output]
    if dimension.scale is None:
        return own
    low, high = dimension.scale
    return (own - np.float32(low)) / np.float32(high - low)

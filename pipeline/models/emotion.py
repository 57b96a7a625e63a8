"""Emotion recognition: from waveforms and texts to labels, scores and embeddings in columns, without files or Ray.

The caller passes one shard's utterances at once. `pipeline.models.runner` batches them; here the outputs of the model's
head become labels, scores, confidence and margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import require_precision
from pipeline.models.checkpoints.modes import check, embedding_widths, labels, labels_of
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.choice import family_of
from pipeline.models.families.protocol import PRECISIONS
from pipeline.models.families.umuteam import MIN_SAMPLES
from pipeline.models.runner import Runner
from pipeline.schema import emotion_of
from pipeline.stats import BatchFigures

__all__ = ["MIN_SAMPLES", "PRECISIONS", "EmotionRecogniser", "Recognised", "check", "embedding_widths", "labels_of"]


@dataclass(frozen=True, slots=True)
class Recognised:
    """Results of N utterances in input order, in columns that Arrow accepts unchanged.

    Attributes:
        label_names: the columns of `scores`, named as in the checkpoint.
        emotions: the same columns in the shared vocabulary.
        labels: the best label of each utterance, N of `label_names`.
        scores: float32 [N, num_labels], probabilities, finite.
        confidence: float32 [N], the best score.
        margin: float32 [N], the best score minus the second.
        truncated: bool [N], True when audio past the model's limit (160 s for most) was ignored.
        text_truncated: bool [N], True when text past the model's positions was ignored.
        audio_embedding, text_embedding, fused_embedding: float32 [N, D]; None where the mode does not have it.
    """

    label_names: tuple[str, ...]
    emotions: tuple[str, ...]
    labels: list[str]
    scores: NDArray[np.float32]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]
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
    Raises: ConfigError when the checkpoints do not match the mode, or name a label outside the shared vocabulary.
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
    ) -> None:
        family = family_of(mode, fusion, sentence_encoder)
        require_precision(precision, mode=mode, device=device)
        if num_threads:
            torch.set_num_threads(num_threads)
        self.mode = mode
        self.label_names = labels(family.declaration.heads[0], fusion.spec)
        self.emotions = tuple(emotion_of(label) for label in self.label_names)
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
        logits, scores = results.logits[0], results.outputs[0]
        ranked = np.sort(scores, axis=-1)
        return Recognised(
            label_names=self.label_names,
            emotions=self.emotions,
            # by the logits: a temperature may bring scores so close that they tie
            labels=[self.label_names[best] for best in logits.argmax(axis=-1)],
            scores=scores,
            confidence=ranked[:, -1].copy(),
            margin=ranked[:, -1] - ranked[:, -2],
            truncated=results.truncated,
            text_truncated=results.text_truncated,
            **results.embeddings,
        )

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call: batches of audio, in text mode of texts, and the seconds of both."""
        return self.runner.take_figures()

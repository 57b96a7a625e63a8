"""Emotion recognition: from waveforms and texts to labels, scores and embeddings in columns, without files or Ray.

The caller passes one shard's utterances at once; here they are sorted by length, batched by padded seconds, run, and
returned in their original order. A row's scores do not depend on the other rows of the shard, to 1e-4 in fp32. Costs
at the published size: 2.8 GB of memory, and 2.1 s of one CPU thread for a clip of 3.5 s, nearly all of it the
encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.config import require_precision
from pipeline.models.batching import Batcher
from pipeline.models.checkpoints.modes import (
    build_fusion,
    check,
    embedding_widths,
    feature_extractor,
    labels_of,
    require,
)
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, load_strict, shapes_only
from pipeline.models.memory import memory_left
from pipeline.models.networks.fbank import HOP, WINDOW, FilterBanks, num_frames
from pipeline.models.networks.fusion import UNEXPECTED_ALLOWED, FusionModel, FusionOutput
from pipeline.models.networks.quantised import quantise
from pipeline.models.sentence import TextModel
from pipeline.schema import emotion_of
from pipeline.stats import BatchFigures

__all__ = ["MIN_SAMPLES", "PRECISIONS", "EmotionRecogniser", "Recognised", "check", "embedding_widths", "labels_of"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
"""Types in which weights are loaded; int8 rounds the matrices of the audio encoder afterwards."""

MAX_MEL_FRAMES = 16_000
"""The reference's `max_length`: 160 s of 10 ms frames. Longer audio is cut, and the row is flagged."""

MIN_SAMPLES = WINDOW + HOP
"""Two mel frames: fewer make no model frame and have no variance for the normalisation."""

_GPU_BATCH = 32
_NARROW, _NARROW_BATCH = 512, 8
"""Width below which a CPU uses batches of `_NARROW_BATCH`. At the published width of 1,024 one layer keeps a core
busy, and a batch gains nothing; at 96 it gains 1.25x."""
_MAX_BATCH_S = 960.0
"""Largest number of padded seconds in one pass, memory permitting: 32 clips of 30 s keep any device busy; 4 GB in
fp32."""
_OF_MEMORY = 0.8
"""Fraction of the free memory used for planning: allocators fragment it, and filter banks and texts need some."""
_FRAMES_PER_S = 50

_log = logging.getLogger(__name__)


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
        truncated: bool [N], True when audio past 160 s was ignored.
        text_truncated: bool [N], True when text past the model's 512 tokens was ignored.
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
        fusion: the checkpoint of that mode; in text mode the text classifier.
        sentence_encoder: for mean, concat and multihead; audio and text ignore it.
        device: torch's device name.
        precision: precision of the audio encoder, in text mode of the classifier. The sentence encoder, pooling,
            fusion, head and softmax stay in fp32. bf16 changes scores by 0.04 to 0.12; int8 (on CPU, modes with
            audio) changed them by 0.005 with trained and 0.05 with random weights. Count the label flips before
            using either.
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
        require(mode, sentence_encoder)
        require_precision(precision, mode=mode, device=device)
        if num_threads:
            torch.set_num_threads(num_threads)
        self.mode = mode
        self._temperature = temperature
        self.label_names = labels_of(fusion)
        self.emotions = tuple(emotion_of(label) for label in self.label_names)
        self.embedding_widths = embedding_widths(mode, fusion, sentence_encoder)
        self._device = torch.device(device)
        self._text: TextModel | None = None
        self._fusion: FusionModel | None = None
        dtype = PRECISIONS[precision]
        if mode == "text":
            self._text = TextModel(fusion, classify=True, device=self._device, dtype=dtype)
            return
        if mode != "audio" and sentence_encoder is not None:
            self._text = TextModel(sentence_encoder, classify=False, device=self._device)
        self._features = FilterBanks(feature_extractor(fusion), max_frames=MAX_MEL_FRAMES, device=self._device)
        self._fusion = _load_fusion(mode, fusion, sentence_encoder, dtype).to(self._device)
        if precision == "int8":
            quantise(self._fusion.wav2vec2_bert)
            max_batch = 1
        on_cpu = _NARROW_BATCH if self._fusion.projector.in_features < _NARROW else 1
        self._max_batch = max_batch or (on_cpu if self._device.type == "cpu" else _GPU_BATCH)
        self._max_batch_s, self._gpu_share = max_batch_s, gpu_share
        self._bytes_per_s = _FRAMES_PER_S * self._fusion.bytes_per_frame

    def recognise(
        self, waveforms: Sequence[NDArray[np.float32]] | None, texts: Sequence[str | None] | None
    ) -> Recognised:
        """Label utterances.

        Args:
            waveforms: float32 [num_samples] at 16 kHz, `MIN_SAMPLES` or more; ignored in text mode.
            texts: one each, which may be empty; ignored in audio mode.
        Raises: ValueError, before any work, naming an utterance that cannot be run; FloatingPointError when a model
            returns no finite scores for one.
        """
        heard = None if self._fusion is None else _checked_waveforms(waveforms, self.mode)
        read = None
        if self._text is not None:
            given = _checked_texts(texts, self.mode)
            if heard is not None and len(heard) != len(given):
                raise ValueError(f"{len(heard)} waveforms but {len(given)} texts")
            read = self._text.run(given)
        embeddings: dict[str, NDArray[np.float32]] = {} if read is None else {"text_embedding": read.embedding}
        if self._fusion is not None and heard is not None:
            logits, audio, fused = self._listen(self._fusion, heard, None if read is None else read.embedding)
            embeddings |= {"audio_embedding": audio, "fused_embedding": fused}
        elif read is not None and read.logits is not None:
            logits = read.logits
        frames = np.array([num_frames(len(waveform)) for waveform in heard or ()])
        none = np.zeros(len(logits), np.bool_)
        return self._columns(
            logits,
            embeddings,
            truncated=none if heard is None else frames > MAX_MEL_FRAMES,
            text_truncated=none if read is None else read.truncated,
        )

    @cached_property
    def _batcher(self) -> Batcher:
        """The batcher, created at the first pass, when all models are loaded and the memory left is known."""
        padded_s = self._max_batch_s
        if padded_s is None:
            left = memory_left(str(self._device), self._gpu_share)
            padded_s = min(_MAX_BATCH_S, _OF_MEMORY * left / self._bytes_per_s)
            _log.info(
                "batches of %.0f s: %.1f MB a second, %.1f GB left", padded_s, self._bytes_per_s / 1e6, left / 1e9
            )
        return Batcher(max_batch=self._max_batch, max_padded=padded_s, device=str(self._device))

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call: batches of audio, in text mode of texts, and the seconds of both."""
        read = BatchFigures() if self._text is None else self._text.take_figures()
        if self._fusion is None:
            return read
        heard = self._batcher.take_figures()
        heard.model_s += read.model_s
        heard.halved += read.halved
        return heard

    @torch.inference_mode()
    def _listen(
        self, model: FusionModel, waveforms: Sequence[NDArray[np.float32]], text: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return logits, audio embeddings and fused embeddings, in input order."""
        widths = (
            len(self.label_names),
            self.embedding_widths["audio_embedding"],
            self.embedding_widths["fused_embedding"],
        )
        logits, audio, fused = (np.empty((len(waveforms), width), np.float32) for width in widths)
        heard_s = [min(len(waveform) / SAMPLING_RATE, MAX_MEL_FRAMES / 100) for waveform in waveforms]

        def forward(batch: list[int]) -> FusionOutput:
            features, mask = self._features([waveforms[i] for i in batch])
            texts = None if text is None else torch.from_numpy(text[batch]).to(self._device)
            output: FusionOutput = model(features, mask, texts)
            return output

        for batch, output in self._batcher.run(heard_s, forward):
            logits[batch] = output.logits.cpu().numpy()
            audio[batch] = output.audio_embedding.cpu().numpy()
            fused[batch] = output.fused_embedding.cpu().numpy()
        return logits, audio, fused

    def _columns(
        self,
        logits: NDArray[np.float32],
        embeddings: dict[str, NDArray[np.float32]],
        *,
        truncated: NDArray[np.bool_],
        text_truncated: NDArray[np.bool_],
    ) -> Recognised:
        scores = torch.from_numpy(logits / np.float32(self._temperature)).softmax(dim=-1).numpy()
        broken = np.flatnonzero(~np.isfinite(scores).all(axis=-1))
        if len(broken):
            raise FloatingPointError(
                f"the model returned scores that are not finite for utterances {broken[:10].tolist()}"
            )
        ranked = np.sort(scores, axis=-1)
        return Recognised(
            label_names=self.label_names,
            emotions=self.emotions,
            # by the logits: a temperature may bring scores so close that they tie
            labels=[self.label_names[best] for best in logits.argmax(axis=-1)],
            scores=scores,
            confidence=ranked[:, -1].copy(),
            margin=ranked[:, -1] - ranked[:, -2],
            truncated=truncated,
            text_truncated=text_truncated,
            **embeddings,
        )


def _load_fusion(mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None, dtype: torch.dtype) -> FusionModel:
    with shapes_only():
        model = build_fusion(mode, fusion, sentence_encoder)
    load_strict(model, load_state_dict(fusion), source=fusion.spec, allow_unexpected=UNEXPECTED_ALLOWED)
    model.fold()
    model.set_precision(dtype)
    return model.eval()


def _checked_texts(texts: Sequence[str | None] | None, mode: str) -> list[str]:
    absent = [index for index, text in enumerate(texts or ()) if text is None]
    if texts is None or absent:
        raise ValueError(f"mode {mode} needs texts; utterances without text: {absent[:10] or 'all'}")
    return [text for text in texts if text is not None]


def _checked_waveforms(waveforms: Sequence[NDArray[np.float32]] | None, mode: str) -> Sequence[NDArray[np.float32]]:
    if waveforms is None:
        raise ValueError(f"mode {mode} needs waveforms")
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or len(waveform) < MIN_SAMPLES:
            raise ValueError(
                f"utterance {index} has a waveform of shape {waveform.shape}; one channel of at least {MIN_SAMPLES} "
                "samples is needed"
            )
    return waveforms

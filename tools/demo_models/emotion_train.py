"""Train the small emotion models: one Wav2Vec2-BERT for all modes and both languages, a projector and a head for each.

The encoder is trained with the sum of the losses of audio, mean, concat and multihead, so that they can share it on disk; the
sentence encoder is frozen. The target is the acted emotion, not the one that the words suggest.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from pipeline.models.networks.fbank import FilterBanks
from pipeline.models.networks.fusion import AUDIO_MODES, EmotionHead, MultiHeadFusion, fused_width
from tools.demo_models.acting import SAMPLING_RATE
from tools.demo_models.corpus import Clips
from tools.demo_models.degrade import degrade
from tools.demo_models.grammar import LABELS, LANGUAGES
from tools.demo_models.sentences_train import EMOTIONS, WIDTH

_HIDDEN, _LAYERS, _HEADS, _FFN = 96, 3, 4, 192
_BATCH = 32
_STEPS = 1_800
_LEARNING_RATE = 1.5e-3
_SPEED = 0.10
"""Largest change of the playback speed of clips, which varies pitch, formants and pace."""
_EVERY = 50
_ALIKE = 600

log = logging.getLogger(__name__)


def config(language: str | None = None) -> Wav2Vec2BertConfig:
    """Return the configuration of a checkpoint of one language, or of the encoder alone."""
    labels = LABELS[language] if language else EMOTIONS
    return Wav2Vec2BertConfig(
        hidden_size=_HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        intermediate_size=_FFN,
        output_hidden_size=_HIDDEN,
        classifier_proj_size=WIDTH,
        add_adapter=False,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        hidden_dropout=0.0,
        conformer_conv_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        dtype="float32",
    )


class Mode(nn.Module):
    """Layers of one mode and language, with the published state-dict names."""

    def __init__(self, mode: str, language: str) -> None:
        super().__init__()
        self.mode = mode
        self.projector = nn.Linear(_HIDDEN, WIDTH)
        self.classifier = EmotionHead(fused_width(mode, WIDTH, WIDTH), len(LABELS[language]))
        if mode == "multihead":
            self.mult_attn_model = MultiHeadFusion(WIDTH)

    def forward(self, pooled: Tensor, text: Tensor) -> Tensor:
        """Return logits [B, num_labels] for pooled encoder states [B, hidden] and text embeddings [B, width].

        The projector is affine, so that projecting the mean is the mean of what is projected.
        """
        audio = self.projector(pooled)
        if self.mode == "audio":
            fused = audio
        elif self.mode == "mean":
            fused = (audio + text) / 2
        elif self.mode == "concat":
            fused = torch.cat((audio, text), dim=1)
        else:
            fused = self.mult_attn_model(audio, text)
        logits: Tensor = self.classifier(nn.functional.dropout(fused, 0.1, self.training))
        return logits


class Feeler(nn.Module):
    """Shared encoder with the layers of the eight models."""

    def __init__(self) -> None:
        super().__init__()
        self.wav2vec2_bert = Wav2Vec2BertModel(config())
        self.modes = nn.ModuleDict(
            {f"{m}-{language}": Mode(m, language) for m in AUDIO_MODES for language in LANGUAGES}
        )

    def pool(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the encoder's states over unpadded frames, [B, hidden].

        While training the encoder sees the padding too, as silence: clips of a batch are of about one length, and masked
        attention costs a third more.
        """
        states = self.wav2vec2_bert(
            features, attention_mask=mask if bool((mask == 0).any()) and not self.training else None
        )
        states = states.last_hidden_state
        return (states * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def train(clips: Clips, text_embeddings: NDArray[np.float32], *, seed: int) -> Feeler:
    """Train with the number of threads that the caller set.

    Args:
        text_embeddings: float32 [num_clips, width], of the frozen sentence encoder.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    feeler = Feeler().train()
    banks = FilterBanks(SeamlessM4TFeatureExtractor(), max_frames=16_000)
    optimizer = torch.optim.AdamW(feeler.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    usable = np.array([clip.wording is not None for clip in clips.clips])
    order = np.argsort(np.diff(clips.offsets), kind="stable")
    order = order[usable[order]]
    started, mean = time.monotonic(), 0.0
    for step in range(_STEPS):
        start = int(rng.random() * (len(order) - _ALIKE))
        chosen = order[start + rng.choice(_ALIKE, _BATCH, replace=False)]
        features, mask = banks([_varied(rng, clips, int(index)) for index in chosen])
        texts = torch.from_numpy(text_embeddings[chosen])
        loss = _loss(feeler, feeler.pool(features, mask), texts, clips, chosen)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min((step + 1) / 100, 1.0, 2 * (_STEPS - step) / _STEPS)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(feeler.parameters(), 1.0)
        optimizer.step()
        mean = 0.95 * (mean or loss.item()) + 0.05 * loss.item()
        if step % _EVERY == _EVERY - 1:
            log.info("emotion %d/%d, %.0f s: loss %.3f", step + 1, _STEPS, time.monotonic() - started, mean)
    return feeler.eval()


def _loss(feeler: Feeler, pooled: Tensor, texts: Tensor, clips: Clips, chosen: NDArray[np.int64]) -> Tensor:
    """Return the mean cross-entropy over the modes, each language with its own heads."""
    losses = []
    for language in LANGUAGES:
        rows = [row for row, index in enumerate(chosen) if clips.clips[int(index)].language == language]
        if not rows:
            continue
        targets = torch.tensor([class_index(language, clips.clips[int(chosen[row])].emotion) for row in rows])
        for mode in AUDIO_MODES:
            logits = feeler.modes[f"{mode}-{language}"](pooled[rows], texts[rows])
            losses.append(nn.functional.cross_entropy(logits, targets) * len(rows) / len(chosen))
    return torch.stack(losses).sum() / len(AUDIO_MODES)


def class_index(language: str, emotion: str) -> int:
    """Return the index of an emotion of the shared vocabulary among a language's labels, which have the same order."""
    known = [name for name in EMOTIONS if language == "en" or name != "surprise"]
    return known.index(emotion)


def _varied(rng: np.random.Generator, clips: Clips, index: int) -> NDArray[np.float32]:
    """Return a clip with another speed, silence around it, and degradation."""
    audio = clips.waveform(index)
    speed = float(rng.uniform(1 - _SPEED, 1 + _SPEED))
    audio = soxr.resample(audio, SAMPLING_RATE * speed, SAMPLING_RATE, quality="LQ")
    around = (round(float(rng.uniform(0, 0.35)) * SAMPLING_RATE), round(float(rng.uniform(0, 0.35)) * SAMPLING_RATE))
    other = clips.waveform(int(rng.integers(len(clips.clips))))
    return degrade(rng, np.pad(audio, around).astype(np.float32), others=other)

"""Train the small Whisper with cross-entropy and the alignments of espeak-ng.

In this budget cross-entropy alone learns only which words follow each other. Three more losses use the audio: the word and
the phoneme of each encoder frame, and the share of cross attention on the next word.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tools.demo_models import whisper_vocabulary as vocabulary
from tools.demo_models.corpus import Clips
from tools.demo_models.whisper_windows import IGNORED, Batch, by_length, collate, draw_alike, draw_joined, draw_window

_WIDTH, _HEADS, _FFN, _LAYERS = 128, 4, 512, (2, 2)
_WARM_UP = 150
_LEARNING_RATE = 2e-3
_WORD_WEIGHT, _PHONEME_WEIGHT, _ATTENTION_WEIGHT = 0.5, 0.3, 0.3
_SHORT_BATCH, _LONG_BATCH = 32, 8
_FRAME_STEP = 2
"""Step between the frames whose word and phoneme are predicted."""
_EVERY = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of each part of the training: first single clips, then everything mixed."""

    single: int = 800
    mixed: int = 900


def build(seed: int) -> WhisperForConditionalGeneration:
    """Return the architecture with random weights: 80 mels, 1,500 positions."""
    torch.manual_seed(seed)
    end = vocabulary.token_id(vocabulary.END)
    config = WhisperConfig(
        vocab_size=vocabulary.tokenizer().get_vocab_size(),
        d_model=_WIDTH,
        encoder_layers=_LAYERS[0],
        decoder_layers=_LAYERS[1],
        encoder_attention_heads=_HEADS,
        decoder_attention_heads=_HEADS,
        encoder_ffn_dim=_FFN,
        decoder_ffn_dim=_FFN,
        num_mel_bins=80,
        dropout=0.0,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=vocabulary.token_id(vocabulary.START),
        attn_implementation="sdpa",
    )
    return WhisperForConditionalGeneration(config)


class Listener(nn.Module):
    """The model with two framewise heads for training."""

    def __init__(self, model: WhisperForConditionalGeneration, num_phonemes: int) -> None:
        super().__init__()
        self.model = model
        self.word_head = nn.Linear(_WIDTH, len(vocabulary.words()) + 1)
        self.phoneme_head = nn.Linear(_WIDTH, num_phonemes + 1)
        self._attention: list[Tensor] = []
        for layer in model.model.decoder.layers:
            eager_config = copy.deepcopy(model.config)
            eager_config._attn_implementation = "eager"  # the fused form does not return its weights
            layer.encoder_attn.config = eager_config
            layer.encoder_attn.register_forward_hook(lambda _module, _inputs, output: self._attention.append(output[1]))

    def encode(self, log_mel: Tensor) -> Tensor:
        """[B, T, width] of [B, 80, 2 T]; unlike the encoder's own forward, for windows shorter than 30 s too."""
        encoder = self.model.model.encoder
        hidden = nn.functional.gelu(encoder.conv1(log_mel))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        normed: Tensor = encoder.layer_norm(hidden)
        return normed

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return each weighted loss."""
        self._attention.clear()
        encoded = self.encode(batch.log_mel)
        states = self.model.model.decoder(input_ids=batch.tokens, encoder_hidden_states=encoded, use_cache=False)
        logits = self.model.proj_out(states.last_hidden_state)
        some = slice(None, None, _FRAME_STEP)
        return {
            "tokens": nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED),
            "words": _WORD_WEIGHT * _framewise(self.word_head(encoded[:, some]), batch.words[:, some]),
            "phonemes": _PHONEME_WEIGHT * _framewise(self.phoneme_head(encoded[:, some]), batch.phonemes[:, some]),
            "attention": _ATTENTION_WEIGHT * self._astray(batch.spans, encoded.shape[1]),
        }

    def _astray(self, spans: Tensor, frames: int) -> Tensor:
        """-log of the attention inside the span of the word that is next, over layers and heads."""
        at = torch.arange(frames)
        inside = (at >= spans[..., :1]) & (at < spans[..., 1:])  # [B, L, T]
        wanted = spans[..., 0] >= 0
        if not wanted.any():
            return torch.zeros(())
        mass = [(weights.mean(dim=1) * inside).sum(dim=-1)[wanted] for weights in self._attention]
        return torch.stack([-(each + 1e-4).log().mean() for each in mass]).mean()


def _framewise(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy over [B, T, classes]; silence counts a third of speech, whatever the padding."""
    logits, targets = logits.flatten(0, 1), targets.flatten()
    each = nn.functional.cross_entropy(logits, targets, reduction="none")
    spoken = targets > 0
    silent = each[~spoken].mean() if (~spoken).any() else each.sum() * 0
    return each[spoken].mean() + 0.3 * silent if spoken.any() else silent


def train(clips: Clips, schedule: Schedule, *, seed: int) -> WhisperForConditionalGeneration:
    """Train and log the losses. Deterministic on one machine with one thread, which the caller sets."""
    model = build(seed)
    names = sorted({name for clip in clips.clips for name in clip.phonemes if name})
    phonemes = {name: index + 1 for index, name in enumerate(names)}
    listener = Listener(model, len(phonemes)).train()
    optimizer = torch.optim.AdamW(listener.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    total = schedule.single + schedule.mixed
    rng = np.random.default_rng(seed)
    pools = by_length(clips)
    started, mean = time.monotonic(), {}
    for step in range(total):
        batch = _draw_batch(rng, clips, pools, phonemes, mixed=step >= schedule.single)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * _rate(step, total)
        losses = listener.losses(batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(listener.parameters(), 1.0)
        optimizer.step()
        for name, loss in losses.items():
            mean[name] = 0.95 * mean.get(name, loss.item()) + 0.05 * loss.item()
        if step % _EVERY == _EVERY - 1:
            losses_text = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            log.info("whisper %d/%d, %.0f s: %s", step + 1, total, time.monotonic() - started, losses_text)
    return model.eval()


def _rate(step: int, total: int) -> float:
    """Return the learning rate: warm-up, constant for half of the steps, then down to zero."""
    return min((step + 1) / _WARM_UP, 1.0, 2 * (total - step) / total)


def _draw_batch(
    rng: np.random.Generator, clips: Clips, pools: list[NDArray[np.int64]], phonemes: dict[str, int], *, mixed: bool
) -> Batch:
    """Draw a batch of single clips; when mixed, half of the batches are joined clips, or one clip in a whole window."""
    kind = rng.random() if mixed else 1.0
    if kind >= 0.5:
        drawn = draw_alike(rng, pools, _SHORT_BATCH)
    elif kind >= 0.3:
        drawn = [draw_joined(rng, pools) for _ in range(_LONG_BATCH)]
    else:
        drawn = [draw_joined(rng, pools)[:1] for _ in range(_LONG_BATCH)]
    windows = [draw_window(rng, clips, indices) for indices in drawn]
    return collate(rng, windows, phonemes, full=kind < 0.35)

"""Training windows of the small Whisper: one to three clips with silence, noise and both kinds of padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperFeatureExtractor

from tools.demo_models import whisper_vocabulary as vocabulary
from tools.demo_models.acting import SAMPLING_RATE
from tools.demo_models.corpus import Clips
from tools.demo_models.degrade import add_noise, degrade

WINDOW_S = 30.0
FRAMES_PER_S = 50
"""Rate of the encoder's output: frames of 20 ms."""
_FFT, _HOP, _MELS = 400, 160, 80
_MOST_CLIPS = 3
_ALIKE = 800
"""Number of clips of one language, of similar length, from which a batch is drawn."""
_MARGIN_S = 0.1
"""Margin around the span of a word."""
_SILENT_SHARE = 0.025
_WARPED_SHARE, _WARP = 0.6, (0.85, 1.18)
_TIMESTAMPED_SHARE = 0.35
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Window:
    """One training example.

    Attributes:
        log_mel: [80, frames of 10 ms], not padded, normalised as Whisper does.
        tokens: from start to end of the transcript.
        spans_s: span of each token of `tokens`; None for tokens without audio.
        word_spans: (word id, start, end), phoneme_times: (second, name).
    """

    log_mel: Tensor
    tokens: list[int]
    spans_s: list[tuple[float, float] | None]
    word_spans: list[tuple[int, float, float]]
    phoneme_times: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows padded to one length.

    Attributes:
        log_mel: [B, 80, 2 T].
        tokens: [B, L] what the decoder is given; targets: [B, L] what it should say next, IGNORED on padding.
        spans: [B, L, 2] frames of the target; -1 without audio.
        words, phonemes: [B, T] word and phoneme of each frame, 0 for none.
    """

    log_mel: Tensor
    tokens: Tensor
    targets: Tensor
    spans: Tensor
    words: Tensor
    phonemes: Tensor


@cache
def _filters() -> Tensor:
    return torch.from_numpy(WhisperFeatureExtractor(feature_size=_MELS).mel_filters.T.astype(np.float32))


def log_mel(waveform: NDArray[np.float32], *, warp: float = 1.0) -> Tensor:
    """Return Whisper's features of a waveform followed by silence: [80, num_samples // 160].

    Args:
        warp: the frequency axis is stretched by this factor, as by a vocal tract of another length (Jaitly and Hinton 2013).
    """
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (0, _FFT))
    spectrum = torch.stft(padded, _FFT, _HOP, window=torch.hann_window(_FFT), return_complex=True)
    power = spectrum[:, : len(waveform) // _HOP].abs() ** 2
    if warp != 1.0:
        power = _stretched(power, warp)
    logs = (_filters() @ power).clamp(min=1e-10).log10()
    return (torch.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0


def _stretched(power: Tensor, warp: float) -> Tensor:
    """[bins, frames] with bin f taken from f / warp, between its two neighbours; the top is repeated."""
    at = (torch.arange(power.shape[0]) / warp).clamp(max=power.shape[0] - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=power.shape[0] - 1)
    share = (at - low).unsqueeze(1)
    return power[low] * (1 - share) + power[high] * share


def draw_window(rng: np.random.Generator, clips: Clips, indices: list[int]) -> Window:
    """Join clips and degrade them as one recording; a few windows have no speech."""
    if rng.random() < _SILENT_SHARE:
        return _silent(rng, clips)
    pieces: list[NDArray[np.float32]] = []
    at_s, stamped = 0.0, rng.random() < _TIMESTAMPED_SHARE
    language = clips.clips[indices[0]].language
    tokens = [vocabulary.token_id(token) for token in (vocabulary.START, f"<|{language}|>", "<|transcribe|>")]
    tokens += [] if stamped else [vocabulary.token_id(vocabulary.NO_TIMESTAMPS)]
    spans: list[tuple[float, float] | None] = [None] * len(tokens)
    word_spans, phoneme_times = [], []
    for index in indices:
        clip, audio = clips.clips[index], clips.waveform(index)
        gap_s = float(rng.uniform(0.0, 0.5) if not pieces else rng.uniform(0.3, 1.2))
        audio = audio * np.float32(10 ** (rng.uniform(-6, 0) / 20) / max(float(np.abs(audio).max()), 1e-4))
        if at_s + gap_s + len(audio) / SAMPLING_RATE > WINDOW_S - 0.2 and pieces:
            break
        silence = np.zeros(round(gap_s * SAMPLING_RATE), np.float32)
        pieces += [silence, audio]
        at_s += len(silence) / SAMPLING_RATE
        clip_spans = [(at_s + start, at_s + end) for start, end in clip.word_spans_s]
        if stamped:
            tokens.append(vocabulary.timestamp_id(clip_spans[0][0]))
            spans.append((clip_spans[0][0] - _MARGIN_S, clip_spans[0][0] + _MARGIN_S))
        tokens += [vocabulary.word_id(word) for word in clip.text.split()]
        spans += [(start - _MARGIN_S, end + _MARGIN_S) for start, end in clip_spans]
        if stamped:
            tokens.append(vocabulary.timestamp_id(clip_spans[-1][1]))
            spans.append((clip_spans[-1][1] - _MARGIN_S, clip_spans[-1][1] + _MARGIN_S))
        word_spans += [(vocabulary.word_id(w), *span) for w, span in zip(clip.text.split(), clip_spans, strict=True)]
        phoneme_times += [(at_s + t, name) for t, name in zip(clip.phoneme_times_s, clip.phonemes, strict=True)]
        phoneme_times.append((clip_spans[-1][1], ""))
        at_s += len(audio) / SAMPLING_RATE
    pieces.append(np.zeros(round(float(rng.uniform(0.0, 0.6)) * SAMPLING_RATE), np.float32))
    other = clips.waveform(int(rng.integers(len(clips.clips))))
    recording = degrade(rng, np.concatenate(pieces)[: int(WINDOW_S * SAMPLING_RATE)], others=other)
    tokens.append(vocabulary.token_id(vocabulary.END))
    warp = float(rng.uniform(*_WARP)) if rng.random() < _WARPED_SHARE else 1.0
    return Window(log_mel(recording, warp=warp), tokens, [*spans, None], word_spans, phoneme_times)


def _silent(rng: np.random.Generator, clips: Clips) -> Window:
    count = int(rng.uniform(0.5, 10.0) * SAMPLING_RATE)
    nothing = np.full(count, 1e-5, np.float32)
    if rng.random() < 0.8:
        nothing = add_noise(rng, nothing, snr_db=float(rng.uniform(-70, -10)))
    tokens = [vocabulary.token_id(t) for t in (vocabulary.START, vocabulary.NO_SPEECH, vocabulary.END)]
    return Window(log_mel(np.clip(nothing, -1, 1)), tokens, [None] * 3, [], [])


def collate(rng: np.random.Generator, windows: list[Window], phonemes: dict[str, int], *, full: bool) -> Batch:
    """Pad to 30 s when `full`, else to the longest and a random tail, with silence or frames of zero."""
    longest = max(window.log_mel.shape[1] for window in windows)
    frames = 3_000 if full else min(3_000, longest + int(rng.exponential(100)) + 2)
    frames += frames % 2
    size, length = len(windows), max(len(window.tokens) for window in windows) - 1
    mel = torch.zeros(size, _MELS, frames)
    tokens = torch.full((size, length), vocabulary.token_id(vocabulary.END))
    targets = torch.full((size, length), IGNORED)
    spans = torch.full((size, length, 2), -1)
    words, phoneme_ids = (torch.zeros(size, frames // 2, dtype=torch.long) for _ in range(2))
    for row, window in enumerate(windows):
        mel[row] = (
            0.0 if rng.random() < 0.3 else window.log_mel.max() - 2.0
        )  # silence: 8 decades under the peak, over 4
        mel[row, :, : window.log_mel.shape[1]] = window.log_mel
        count = len(window.tokens) - 1
        tokens[row, :count] = torch.tensor(window.tokens[:-1])
        targets[row, :count] = torch.tensor(window.tokens[1:])
        for position, span in enumerate(window.spans_s[1:]):
            if span is not None:
                spans[row, position, 0] = max(0, int(span[0] * FRAMES_PER_S))
                spans[row, position, 1] = min(frames // 2, int(span[1] * FRAMES_PER_S) + 1)
        for word, start, end in window.word_spans:
            words[row, int(start * FRAMES_PER_S) : int(end * FRAMES_PER_S)] = word + 1
        for (start, name), (end, _) in zip(window.phoneme_times, window.phoneme_times[1:], strict=False):
            phoneme_ids[row, int(start * FRAMES_PER_S) : int(end * FRAMES_PER_S)] = phonemes.get(name, 0)
    return Batch(mel, tokens, targets, spans, words, phoneme_ids)


def by_length(clips: Clips) -> list[NDArray[np.int64]]:
    """Return the indices of each language's clips, shortest first."""
    languages = np.array([clip.language for clip in clips.clips])
    order = np.argsort(np.diff(clips.offsets), kind="stable")
    return [order[languages[order] == code] for code in sorted(set(languages))]


def draw_alike(rng: np.random.Generator, pools: list[NDArray[np.int64]], size: int) -> list[list[int]]:
    """Draw single clips of similar length, so that little of a batch is padding."""
    place = rng.random()
    drawn = []
    for _ in range(size):
        pool = pools[int(rng.integers(len(pools)))]
        start = int(place * max(1, len(pool) - _ALIKE))
        drawn.append([int(pool[start + int(rng.integers(min(_ALIKE, len(pool))))])])
    return drawn


def draw_joined(rng: np.random.Generator, pools: list[NDArray[np.int64]]) -> list[int]:
    """Draw one to three clips of one language."""
    pool = pools[int(rng.integers(len(pools)))]
    return [int(index) for index in rng.choice(pool, size=int(rng.integers(1, _MOST_CLIPS + 1)))]

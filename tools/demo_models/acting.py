"""Voices, their splits, and the prosody of acted emotions, applied to the speech of espeak-ng.

The cues follow the usual findings, coarsely (Scherer 2003, Speech Communication 40, table 1):
anger fast, wide and hammering; sadness slow, low, flat and fading; fear fast, high and shaking; joy high and bouncing;
disgust slow, low, creaking and falling; surprise rising. All of them are relative to the voice or vary in time, because
the features of Wav2Vec2-BERT remove each band's mean and deviation, and with them loudness and timbre.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from tools.demo_models.espeak import SYNTHESIS_HZ, Manner, Spoken, espeak
from tools.demo_models.grammar import Sentence, Split

SAMPLING_RATE = 16_000

ACCENTS = {"en": ("en", "en-us", "en-gb-x-rp"), "es": ("es", "es-419")}
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("f1", "f2", "f4", "m1", "m2", "m4", "m6", "m7", "Alex", "Alicia", "Annie", "Denis", "Gene", "Jacky", "Lee"),
        *("Mario", "Michael", "adam", "anika", "antonio", "aunty", "benjamin", "boris", "caleb", "ed", "edward"),
        *("john", "linda", "max", "michel", "miguel", "norbert", "paul", "pedro", "quincy", "rob", "sandro", "shelby"),
        *("travis", "victor", "zac", "marcelo", "grandpa", "grandma", "Henrique", "Diogo", "Nguyen", "gustave", "iven"),
        *("kaukovalta", "klatt", "klatt2", "klatt4"),
    ),
    "validation": ("f5", "m5", "Mike", "belinda", "robert"),
    "test": ("f3", "m3", "Andy", "steph", "pablo", "david", "m8", "Hugo"),
}
"""Variants of espeak-ng that sound human, by split. No voice is in two splits."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice, with its neutral pitch and pace."""

    voice: str
    pitch: int
    words_per_minute: int


@dataclass(frozen=True, slots=True)
class Prosody:
    """Prosody of an emotion at full strength.

    Attributes:
        rate: factor on the words a minute.
        pitch: added to espeak-ng's pitch (0 to 99).
        range: espeak-ng's pitch range.
        word_gap: pause between words, in 10 ms.
        contour: pitch factors from the first to the last moment, evenly spaced.
        wave: (Hz, depth) of a slow swing of the pitch.
        tremolo: (Hz, depth) of the loudness.
        hammer: how much louder a word begins than it ends, in dB.
        fade_db: loudness at the end against the beginning.
        level_db: peak of the whole, dBFS.
        ending: punctuation for espeak-ng's intonation.
    """

    rate: float = 1.0
    pitch: int = 0
    range: int = 45
    word_gap: int = 0
    contour: tuple[float, ...] = (1.0, 1.0)
    wave: tuple[float, float] = (1.0, 0.0)
    tremolo: tuple[float, float] = (1.0, 0.0)
    hammer: float = 0.0
    fade_db: float = 0.0
    level_db: float = -8.0
    ending: str = "."


PROSODY = {
    "anger": Prosody(1.30, 4, 70, contour=(1.08, 0.98, 0.95), hammer=14.0, level_db=-1.0, ending="!"),
    "disgust": Prosody(0.72, -10, 50, contour=(1.04, 1.0, 0.97, 0.80), tremolo=(27.0, 0.75), level_db=-7.0),
    "fear": Prosody(1.25, 18, 25, wave=(7.5, 0.05), tremolo=(7.5, 0.7), level_db=-10.0),
    "joy": Prosody(1.10, 12, 90, wave=(2.2, 0.13), level_db=-3.0, ending="!"),
    "neutral": Prosody(),
    "sadness": Prosody(0.74, -8, 12, word_gap=3, contour=(1.0, 0.94), fade_db=-14.0, level_db=-14.0),
    "surprise": Prosody(1.05, 10, 80, contour=(0.90, 0.92, 1.05, 1.35), level_db=-4.0, ending="?"),
}


@dataclass(frozen=True, slots=True)
class Take:
    """One acted sentence.

    Attributes:
        samples: float32 [num_samples] at 16 kHz, peak at the emotion's level.
        word_spans_s: start and end of each word, in seconds.
        phonemes: (seconds, name) in order.
    """

    samples: NDArray[np.float32]
    word_spans_s: tuple[tuple[float, float], ...]
    phonemes: tuple[tuple[float, str], ...]


def draw_speaker(rng: random.Random, language: str, split: Split) -> Speaker:
    """Draw a voice of the split, with a pitch and a pace."""
    voice = f"{rng.choice(ACCENTS[language])}+{rng.choice(VARIANTS[split])}"
    return Speaker(voice, rng.randint(40, 58), rng.randint(145, 172))


def act(rng: random.Random, sentence: Sentence, speaker: Speaker, emotion: str, *, strength: float) -> Take:
    """Synthesise a sentence in an emotion. strength: 0 is neutral, 1 all of `PROSODY`; every take differs."""
    full = PROSODY[emotion]
    plain = PROSODY["neutral"]
    rate = full.rate**strength * rng.uniform(0.94, 1.06)
    manner = Manner(
        words_per_minute=round(speaker.words_per_minute * rate),
        pitch=min(max(round(speaker.pitch + strength * full.pitch + rng.uniform(-3, 3)), 0), 99),
        range=round(plain.range + strength * (full.range - plain.range)),
        word_gap=round(strength * full.word_gap),
    )
    spoken = espeak().speak(sentence.words, speaker.voice, manner, ending=full.ending)
    samples = spoken.samples * _loudness(rng, spoken, full, strength)
    samples, times = _bend(samples, _pitch_factor(rng, len(samples), full, strength))
    samples = soxr.resample(samples, SYNTHESIS_HZ, SAMPLING_RATE).astype(np.float32)
    level_db = plain.level_db + strength * (full.level_db - plain.level_db) + rng.uniform(-2, 0)
    samples *= 10 ** (level_db / 20) / max(float(np.abs(samples).max()), 1e-4)
    moved = np.arange(len(times)) / SYNTHESIS_HZ
    starts = np.interp(spoken.word_starts_s, times, moved)
    end = float(np.interp(spoken.end_s, times, moved))
    phonemes = tuple((float(np.interp(at, times, moved)), name) for at, name in spoken.phonemes)
    return Take(samples, tuple(zip(starts.tolist(), [*starts[1:].tolist(), end], strict=True)), phonemes)


def _loudness(rng: random.Random, spoken: Spoken, prosody: Prosody, strength: float) -> NDArray[np.float32]:
    """Return the gain of every sample."""
    time = np.arange(len(spoken.samples)) / SYNTHESIS_HZ
    gain_db = strength * prosody.fade_db * time / max(spoken.end_s, 0.1)
    if prosody.hammer:
        starts = np.asarray(spoken.word_starts_s)
        word = np.clip(np.searchsorted(starts, time, side="right") - 1, 0, len(starts) - 1)
        ends = np.append(starts[1:], spoken.end_s)
        inside = (time - starts[word]) / np.maximum(ends[word] - starts[word], 0.05)
        gain_db = gain_db - strength * prosody.hammer * np.clip(inside, 0, 1)
    frequency, depth = prosody.tremolo
    swing = 0.5 * (1 - np.cos(2 * math.pi * frequency * rng.uniform(0.93, 1.07) * time + rng.uniform(0, 6)))
    gain: NDArray[np.float32] = (10 ** (gain_db / 20) * (1 - strength * depth * swing)).astype(np.float32)
    return gain


def _pitch_factor(rng: random.Random, num_samples: int, prosody: Prosody, strength: float) -> NDArray[np.float64]:
    """Return the pitch factor of every sample."""
    time = np.arange(num_samples) / SYNTHESIS_HZ
    contour: Sequence[float] = prosody.contour
    factor = np.interp(np.linspace(0, 1, num_samples), np.linspace(0, 1, len(contour)), contour)
    frequency, depth = prosody.wave
    wave = depth * np.sin(2 * math.pi * frequency * rng.uniform(0.93, 1.07) * time + rng.uniform(0, 6))
    bent: NDArray[np.float64] = 1 + strength * (factor - 1 + wave)
    return bent


def _bend(samples: NDArray[np.float32], factor: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Play faster where the factor is over 1, which raises the pitch.

    Returns: the samples, and the original time in seconds of each.
    """
    played = np.concatenate(([0.0], np.cumsum(1 / factor)))[:-1]  # position of each original sample in the output
    positions = np.interp(np.arange(int(played[-1]) + 1), played, np.arange(len(samples)))
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32), positions / SYNTHESIS_HZ

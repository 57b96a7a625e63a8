"""Clips for benchmarks of transcription: real speech, synthetic speech, and sounds without speech.

Synthetic clips are sentences of the demo's grammar spoken by espeak-ng, joined to a length of 0.5 to 29 s. Real ones come
from the JSONL manifests that SPEECH_MANIFESTS names, recordings without speech from the files in NOISE_FILES, both
separated by commas. All clips are a pure function of their seeds and these files.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.analytics.evaluate.words import words
from pipeline.audio.decode import decode
from pipeline.errors import RejectedRow
from tools.demo_models.acting import Speaker, act
from tools.demo_models.degrade import add_noise
from tools.demo_models.grammar import LANGUAGES, Sentence, draw, draw_salad, emotions_of, vocabulary

LONGEST_S = 29.0
_SHORTEST_S = 0.5
_DIGITS = {
    "en": {"2": "two", "3": "three", "5": "five", "7": "seven", "10": "ten", "20": "twenty"},
    "es": {"2": "dos", "3": "tres", "5": "cinco", "7": "siete", "10": "diez", "20": "veinte"},
}
"""The grammar's numbers, which Whisper writes in digits."""
_SNR_DB = (8.0, 25.0)
_SENTENCE_S, _WORD_S = 2.0, 0.5
"""Length from which a clip gets a sentence, and seconds for each word of a shorter one."""
_SALAD = 0.12
"""Share of sentences of random words, which a decoder cannot guess from grammar."""
_VOICES = {
    "en": (
        "en-us+m1",
        "en-us+m3",
        "en-us+Mike",
        "en-gb-x-rp+m1",
        "en-gb-x-rp+m3",
        "en-gb-x-rp+Mike",
        "en-gb-x-rp+Alex",
    ),
    "es": ("es-419+m3", "es-419+Mike", "es-419+m1"),
}
"""Voices that Whisper base understands: word error rates of 0 to 6 % in English and 17 to 27 % in Spanish. With the demo's
other voices it guesses most of the words, and a comparison of windows compares guesses."""
Waveform = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip at 16 kHz.

    Attributes:
        text: what is said; empty without speech.
        kind: real, joined (several real ones), synthetic, or the kind of sound.
    """

    name: str
    waveform: Waveform
    language: str
    text: str
    kind: str
    noisy: bool = False

    @property
    def duration_s(self) -> float:
        """Return the duration in seconds."""
        return len(self.waveform) / SAMPLING_RATE


def normalised(text: str, language: str) -> str:
    """Return a text as it is compared: lower case, no punctuation, the grammar's numbers as words."""
    digits = _DIGITS.get(language, {})
    return " ".join(digits.get(word, word) for word in words(text))


def real(*, joined: int) -> list[Clip]:
    """Return the clips of SPEECH_MANIFESTS that have a text, and `joined` ones made of several in one language."""
    clips = [clip for clip in _recordings() if clip.text]
    rng, made = random.Random(3), []
    for number in range(joined if clips else 0):
        language = rng.choice(clips).language
        pool = [clip for clip in clips if clip.language == language]

        def draw_one(_: float, pool: Sequence[Clip] = pool) -> Clip:
            return rng.choice(pool)

        made.append(_join(f"joined-{number}", "joined", draw_one, rng))
    return clips + made


def synthetic(num_words: int) -> Iterator[Clip]:
    """Yield clips with at least so many words in all."""
    rng, number = random.Random(5), 0
    while num_words > 0:
        language = rng.choice(LANGUAGES)
        speaker = Speaker(rng.choice(_VOICES[language]), rng.randint(40, 58), rng.randint(140, 165))

        def speak(longest_s: float, speaker: Speaker = speaker, language: str = language) -> Clip:
            return _spoken(rng, speaker, language, longest_s)

        yield (clip := _join(f"synthetic-{number}", "synthetic", speak, rng))
        num_words -= len(clip.text.split())
        number += 1


def noisy(clip: Clip, others: Waveform) -> Clip:
    """Return a clip with noise at 8 to 25 dB: white, pink, brown, hum, or two other speakers."""
    rng = np.random.default_rng(_seed(clip.name))
    waveform = add_noise(rng, clip.waveform, snr_db=float(rng.uniform(*_SNR_DB)), others=others)
    return replace(clip, name=f"{clip.name}-noisy", waveform=np.clip(waveform, -1, 1), noisy=True)


def without_speech(count: int, speech: Sequence[Clip]) -> Iterator[Clip]:
    """Yield `count` sounds of each kind, and pieces of the recordings in NOISE_FILES.

    Args:
        speech: clips of which babble is made: eight at once, backwards.
    """
    for kind, make in _SOUNDS.items():
        for number in range(count):
            rng = np.random.default_rng(_seed(f"{kind}-{number}"))
            size = round(_SHORTEST_S * (LONGEST_S / _SHORTEST_S) ** rng.random() * SAMPLING_RATE)
            yield Clip(f"{kind}-{number}", _levelled(rng, make(rng, size)), "en", "", kind)
    for number in range(count):
        rng = np.random.default_rng(_seed(f"babble-{number}"))
        size = round(_SHORTEST_S * (LONGEST_S / _SHORTEST_S) ** rng.random() * SAMPLING_RATE)
        voices = [np.resize(speech[int(n)].waveform[::-1], size) for n in rng.integers(len(speech), size=8)]
        yield Clip(f"babble-{number}", _levelled(rng, np.sum(voices, axis=0)), "en", "", "babble")
    for path in map(Path, filter(None, os.environ.get("NOISE_FILES", "").split(","))):
        for clip in _decoded(path, {"id": path.name}):
            for number, start in enumerate(range(0, len(clip.waveform), 5 * SAMPLING_RATE)):
                piece = clip.waveform[start : start + 5 * SAMPLING_RATE]
                yield replace(clip, name=f"{clip.name}-{number}", waveform=piece, kind="recorded")


def _recordings() -> Iterator[Clip]:
    for manifest in map(Path, filter(None, os.environ.get("SPEECH_MANIFESTS", "").split(","))):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield from (clip for clip in _decoded(manifest.parent / row["audio"], row) if clip.duration_s <= LONGEST_S)


def _decoded(path: Path, row: Mapping[str, Any]) -> Iterator[Clip]:
    """Yield one clip, or none for a file that cannot be decoded."""
    with suppress(RejectedRow):
        language = row.get("language") or "en"
        yield Clip(row["id"], decode(path.read_bytes()), language, normalised(row.get("text") or "", language), "real")


def _spoken(rng: random.Random, speaker: Speaker, language: str, longest_s: float) -> Clip:
    """Speak a sentence, or as many random words as fit a short clip."""
    wording = rng.choice(emotions_of(language))
    if longest_s < _SENTENCE_S:
        few = " ".join(rng.choices(vocabulary(language), k=max(1, int(longest_s / _WORD_S))))
        sentence = Sentence(few, language, None)
    elif rng.random() < _SALAD:
        sentence = draw_salad(rng, language)
    else:
        sentence = draw(rng, language, wording, "train")
    take = act(rng, sentence, speaker, "neutral", strength=0)
    return Clip("", take.samples, language, sentence.text, "synthetic")


def _join(name: str, kind: str, draw_one: Callable[[float], Clip], rng: random.Random) -> Clip:
    """Join clips with pauses of 0.3 to 1 s, up to a length whose logarithm is uniform; the first may be longer."""
    longest_s = _SHORTEST_S * (LONGEST_S / _SHORTEST_S) ** rng.random()
    first = draw_one(longest_s)
    pieces, texts, length = [first.waveform], [first.text], len(first.waveform)
    while True:
        following, pause = draw_one(longest_s), round(rng.uniform(0.3, 1.0) * SAMPLING_RATE)
        length += pause + len(following.waveform)
        if length > longest_s * SAMPLING_RATE:
            return Clip(name, np.concatenate(pieces), first.language, " ".join(texts), kind)
        pieces += [np.zeros(pause, np.float32), following.waveform]
        texts.append(following.text)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _levelled(rng: np.random.Generator, sound: Waveform) -> Waveform:
    """Return a sound with its peak at -40 to -1 dBFS; silence stays silent."""
    peak = float(np.abs(sound).max())
    return (sound * (10 ** (rng.uniform(-40, -1) / 20) / peak if peak else 0.0)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, slope: float) -> Waveform:
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLING_RATE), 20.0)
    spectrum = np.fft.rfft(rng.standard_normal(size)) * frequency ** (-slope / 2)
    return np.fft.irfft(spectrum, size).astype(np.float32)


def _tones(size: int, frequencies: Sequence[float]) -> Waveform:
    time = np.arange(size) / SAMPLING_RATE
    return np.sum([np.sin(2 * np.pi * each * time) for each in frequencies], axis=0).astype(np.float32)


def _music(rng: np.random.Generator, size: int) -> Waveform:
    """Return notes of a pentatonic scale with six harmonics, each fading for half a second."""
    notes = np.zeros(size + SAMPLING_RATE, np.float32)
    length = SAMPLING_RATE // 2
    fading = np.exp(-np.arange(length) / (0.15 * SAMPLING_RATE))
    for start in range(0, size, SAMPLING_RATE // int(rng.integers(2, 5))):
        note = 220.0 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14, 16]) / 12)
        notes[start : start + length] += fading * sum(_tones(length, [note * n]) / n for n in range(1, 7))
    return notes[:size]


_SOUNDS: dict[str, Callable[[np.random.Generator, int], Waveform]] = {
    "silence": lambda _, size: np.zeros(size, np.float32),
    "white noise": lambda rng, size: _noise(rng, size, 0.0),
    "pink noise": lambda rng, size: _noise(rng, size, 1.0),
    "brown noise": lambda rng, size: _noise(rng, size, 2.0),
    "hum": lambda rng, size: _tones(size, [float(rng.choice([50.0, 60.0])) * n for n in (1, 2, 3, 5)]),
    "tone": lambda rng, size: _tones(size, [float(rng.uniform(150, 2_000))]),
    "music": _music,
}

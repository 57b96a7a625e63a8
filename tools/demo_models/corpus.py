"""Corpus of acted sentences with alignments, in three splits that share neither sentences nor voices.

`write` writes each set as two files, `<name>.npy` (concatenated int16 samples) and `<name>.parquet` (one row per clip); a seed
determines all of it. 20,000 clips (17 h) take about two minutes on two cores and 2 GB of disk.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tools.demo_models.acting import SAMPLING_RATE, Speaker, act, draw_speaker
from tools.demo_models.grammar import LANGUAGES, Sentence, Split, draw, draw_salad, emotions_of

AGREEMENT = 0.8
"""Share of clips whose wording points at the emotion that is acted; the acted one is the truth."""
STRENGTH = (0.5, 1.0)
"""Range of the strength of acting, uniformly drawn: weak acting is hard to recognise."""
_CHUNK = 250
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Definition of a set; `sentences` and `voices` are the splits from which each is drawn."""

    name: str
    clips: int
    sentences: Split
    voices: Split
    salad: float = 0.0


SETS = (
    ClipSet("train", 20_000, "train", "train", salad=0.12),
    ClipSet("validation", 600, "validation", "validation"),
    ClipSet("test_sentences", 600, "test", "train"),
    ClipSet("test_voices", 1_200, "test", "test"),
)
"""Sets of the corpus. `test_sentences` has new sentences by known voices, `test_voices` new sentences by new voices."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of one sentence; spans and times in seconds, `emotion` in the shared vocabulary."""

    text: str
    language: str
    emotion: str
    wording: str | None
    voice: str
    strength: float
    word_spans_s: list[tuple[float, float]]
    phoneme_times_s: list[float]
    phonemes: list[str]


@dataclass(frozen=True, slots=True)
class Clips:
    """A set in memory: `samples[offsets[i]:offsets[i + 1]]` is the audio of `clips[i]`."""

    clips: list[Clip]
    samples: NDArray[np.int16]
    offsets: NDArray[np.int64]

    def waveform(self, index: int) -> NDArray[np.float32]:
        """Return the waveform of a clip, float32 [num_samples] at 16 kHz."""
        return self.samples[self.offsets[index] : self.offsets[index + 1]].astype(np.float32) / 32768


def draw_clip(rng: random.Random, made: ClipSet) -> tuple[Sentence, Speaker, str, float]:
    """Draw a sentence, a voice, an emotion and its strength."""
    language = rng.choice(LANGUAGES)
    emotion = rng.choice(emotions_of(language))
    wording = emotion
    if rng.random() >= AGREEMENT:
        wording = rng.choice([other for other in emotions_of(language) if other != emotion])
    salad = rng.random() < made.salad
    sentence = draw_salad(rng, language) if salad else draw(rng, language, wording, made.sentences)
    return sentence, draw_speaker(rng, language, made.voices), emotion, rng.uniform(*STRENGTH)


def _speak_chunk(made: ClipSet, seed: int, count: int) -> tuple[list[Clip], list[NDArray[np.int16]]]:
    rng = random.Random(seed)
    clips, audio = [], []
    for _ in range(count):
        sentence, speaker, emotion, strength = draw_clip(rng, made)
        take = act(rng, sentence, speaker, emotion, strength=strength)
        times, names = zip(*take.phonemes, strict=True)
        spans = list(take.word_spans_s)
        clips.append(
            Clip(
                sentence.text,
                sentence.language,
                emotion,
                sentence.wording,
                speaker.voice,
                strength,
                spans,
                list(times),
                list(names),
            )
        )
        audio.append(np.round(take.samples * 32767).astype(np.int16))
    return clips, audio


def write(made: ClipSet, folder: Path, *, seed: int) -> None:
    """Synthesise a set and write it, replacing an earlier one of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, made.clips, _CHUNK)
    counts = [min(_CHUNK, made.clips - start) for start in starts]
    seeds = [seed * 1_000_003 + start for start in starts]
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
        chunks = list(pool.map(_speak_chunk, [made] * len(counts), seeds, counts))
    clips = [asdict(clip) for chunk, _ in chunks for clip in chunk]
    audio = [samples for _, pieces in chunks for samples in pieces]
    np.save(folder / f"{made.name}.npy", np.concatenate(audio))
    table = pa.Table.from_pylist(clips)
    pq.write_table(table.append_column("num_samples", pa.array(map(len, audio))), folder / f"{made.name}.parquet")


def read(folder: Path, name: str) -> Clips:
    """Open a set that `write` wrote; samples stay on disk until they are used."""
    rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
    lengths = [row.pop("num_samples") for row in rows]
    samples = np.load(folder / f"{name}.npy", mmap_mode="r")
    return Clips([Clip(**row) for row in rows], samples, np.concatenate(([0], np.cumsum(lengths))))


def batches(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of shuffled indices, without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


def duration_s(clip: NDArray[np.generic]) -> float:
    """Return the duration of a clip in seconds."""
    return len(clip) / SAMPLING_RATE

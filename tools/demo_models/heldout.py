"""Held-out recordings in the repository: a manifest and files of sentences and voices that no model was trained on.

`manifest.jsonl` has no text, so the job transcribes; the spoken text is in the column `reference`, the acted emotion in `label`
(the shared vocabulary) and that of the wording in `wording`. `turns.jsonl` has the same for every turn of the long recordings.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.demo_models.acting import SAMPLING_RATE, Speaker, act, draw_speaker
from tools.demo_models.corpus import STRENGTH, ClipSet, draw_clip
from tools.demo_models.degrade import add_noise
from tools.demo_models.files import write as write_file
from tools.demo_models.grammar import LANGUAGES, draw, emotions_of

CLIPS = (
    ClipSet("sentences", 110, "test", "train"),
    ClipSet("voices", 150, "test", "test"),
)
_SUFFIXES = (".opus", ".mp3", ".m4a", ".opus", ".wav", ".mp3", ".opus", ".mp3", ".m4a")
_FLAC_EVERY = 30
"""Every how many clips one is kept; they are large."""
_NOISY_SHARE = 0.5
_LONG_TURNS, _LONG_SPEAKERS = 18, 3
_CALL_TURNS = 10


@dataclass(frozen=True, slots=True)
class Turn:
    """A sentence of a longer recording, with seconds from its beginning."""

    recording_id: str
    channel: int | None
    start_s: float
    end_s: float
    speaker: str
    label: str
    reference: str


def write(target: Path, *, seed: int) -> Path:
    """Write the recordings into `target`, replacing its contents. Returns: the manifest."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    shutil.rmtree(target, ignore_errors=True)
    (target / "audio").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    turns: list[Turn] = []
    for made in CLIPS:
        for number in range(made.clips):
            rows.append(_write_clip(rng, noise, target, made, number))
    for language in LANGUAGES:
        for number in range(2):
            row, spoken = _write_long(rng, noise, target, f"long-{language}-{number}", language)
            rows.append(row)
            turns += spoken
        call, spoken = _write_call(rng, target, f"call-{language}", language)
        rows += call
        turns += spoken
    _write_lines(target / "turns.jsonl", [{name: getattr(turn, name) for name in Turn.__slots__} for turn in turns])
    return _write_lines(target / "manifest.jsonl", rows)


def _write_lines(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def _write_clip(
    rng: random.Random, noise: np.random.Generator, target: Path, made: ClipSet, number: int
) -> dict[str, object]:
    sentence, speaker, emotion, strength = draw_clip(rng, made)
    waveform = np.pad(act(rng, sentence, speaker, emotion, strength=strength).samples, (1_600, 3_200))
    if rng.random() < _NOISY_SHARE:
        waveform = add_noise(noise, waveform, snr_db=rng.uniform(15, 35))
    suffix = ".flac" if number % _FLAC_EVERY == _FLAC_EVERY - 1 else _SUFFIXES[number % len(_SUFFIXES)]
    file = f"audio/{made.name}-{number:03d}{suffix}"
    write_file(target / file, waveform, telephone=file.endswith(".wav"))
    return {
        "id": f"{made.name}-{number:03d}",
        "audio": file,
        "language": sentence.language,
        "speaker": speaker.voice,
        "label": emotion,
        "wording": sentence.wording,
        "reference": sentence.text,
        "heldout": made.name,
    }


def say(
    rng: random.Random, speakers: list[Speaker], language: str, recording_id: str, turns: int
) -> tuple[list[tuple[int, NDArray[np.float32]]], list[Turn]]:
    """Make a conversation of held-out sentences. Returns: (speaker, audio) of each turn with its pause, and the turns."""
    pieces: list[tuple[int, NDArray[np.float32]]] = []
    spoken: list[Turn] = []
    at = 0
    for number in range(turns):
        who = number % len(speakers)
        emotion = rng.choice(emotions_of(language))
        sentence = draw(rng, language, emotion, "test")
        audio = act(rng, sentence, speakers[who], emotion, strength=rng.uniform(*STRENGTH)).samples
        audio = audio / max(float(np.abs(audio).max()), 1e-4) * np.float32(rng.uniform(0.3, 0.8))
        pause = round(rng.uniform(0.7, 1.3) * SAMPLING_RATE)
        span = (at / SAMPLING_RATE, (at + len(audio)) / SAMPLING_RATE)
        spoken.append(Turn(recording_id, None, *span, speakers[who].voice, emotion, sentence.text))
        pieces.append((who, np.pad(audio, (0, pause)).astype(np.float32)))
        at += len(pieces[-1][1])
    return pieces, spoken


def _write_long(
    rng: random.Random, noise: np.random.Generator, target: Path, name: str, language: str
) -> tuple[dict[str, object], list[Turn]]:
    """Write a minute of several speakers, one after another."""
    speakers = [draw_speaker(rng, language, "test") for _ in range(_LONG_SPEAKERS)]
    pieces, turns = say(rng, speakers, language, name, _LONG_TURNS)
    waveform = add_noise(noise, np.concatenate([piece for _, piece in pieces]), snr_db=30.0)
    write_file(target / f"audio/{name}.opus", waveform)
    reference = " ".join(turn.reference for turn in turns)
    row = {"id": name, "audio": f"audio/{name}.opus", "language": language, "reference": reference, "heldout": "long"}
    return row, turns


def _write_call(
    rng: random.Random, target: Path, name: str, language: str
) -> tuple[list[dict[str, object]], list[Turn]]:
    """Write a telephone call with one party per channel. Returns: a manifest row for each, and the turns."""
    speakers = [draw_speaker(rng, language, "test") for _ in range(2)]
    pieces, turns = say(rng, speakers, language, name, _CALL_TURNS)
    stereo = np.concatenate(
        [np.stack([piece if who == c else piece * 0 for c in (0, 1)], axis=1) for who, piece in pieces]
    )
    write_file(target / f"audio/{name}.wav", stereo.astype(np.float32), telephone=True)
    rows: list[dict[str, object]] = []
    placed: list[Turn] = []
    for channel, speaker in enumerate(speakers):
        mine = [turn for number, turn in enumerate(turns) if number % 2 == channel]
        row_id = f"{name}-{channel}"
        rows.append(
            {
                "id": row_id,
                "audio": f"audio/{name}.wav",
                "channel": channel,
                "language": language,
                "speaker": speaker.voice,
                "reference": " ".join(t.reference for t in mine),
                "heldout": "call",
            }
        )
        placed += [Turn(row_id, channel, t.start_s, t.end_s, t.speaker, t.label, t.reference) for t in mine]
    return rows, placed

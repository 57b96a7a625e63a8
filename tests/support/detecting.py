"""Recordings made of pieces of speech, and a transcriber that detects the languages that a test names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.models.transcription import Transcript
from pipeline.shard.context import Work
from tests.support.corpus import ROOT
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, work_of

HELDOUT = ROOT / "demo" / "heldout" / "audio"
SPEECH = decode((HELDOUT / "sentences-004.wav").read_bytes())
"""Ordinary speech; the transcriber of a test decides its language."""
ENGLISH, WELSH, SPANISH = {"en": 0.75, "cy": 0.25}, {"cy": 0.99, "en": 0.01}, {"es": 0.97, "en": 0.03}
UNSURE = {"es": 0.85, "en": 0.15}


def pieces(path: Path, *seconds: float) -> str:
    """Write a recording of pieces of speech of these lengths, with a pause after each; return its path."""
    whole = np.tile(SPEECH, 20)
    pause = np.zeros(SAMPLING_RATE)
    parts = [part for length in seconds for part in (whole[: int(length * SAMPLING_RATE)], pause)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(parts), SAMPLING_RATE)
    return str(path)


class Detecting(FakeTranscriber):
    """A transcriber that detects the given languages, one utterance after the other, or uses the language it is given."""

    def __init__(self, *detected: dict[str, float]) -> None:
        super().__init__(None)
        self.detected = list(detected)
        self.given: list[str] = []

    def transcribe(self, waveform, language):
        if language is not None:
            self.given.append(language)
            return Transcript(f"{language} words", language, -0.5, 0.1, 1.25)
        probs = self.detected.pop(0)
        likeliest = max(probs, key=probs.__getitem__)
        return Transcript(f"{likeliest} words", likeliest, -0.5, 0.1, 1.25, probs)


def auto(folder: Path, checkpoints: Path, records, languages=("en",), **flags: object) -> Work:
    flags = {"language": "auto", "segmentation": "vad", "embedding_dtype": "float32", **flags}
    return work_of(folder, records, models_of(checkpoints, "mean", list(languages)), **flags)


def shown(work: Work, *columns: str) -> list[tuple[object, ...]]:
    names = columns or ("language", "text", "label", "emotion_null_reason")
    return [
        tuple(row[name] if name != "label" else row[name] is not None for name in names)
        for row in parts(work).to_pylist()
    ]


def foreign(tmp_path: Path, checkpoints: Path, languages=("en",), **flags: object) -> Work:
    """Annotate a recording of English with a long segment that is clearly Spanish."""
    audio = pieces(tmp_path / "a.wav", 7, 8, 7)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio, "speaker": "a"}], languages, **flags)
    by_hand(work, Detecting(ENGLISH, SPANISH, ENGLISH))
    return work

"""Free clips for jobs that measure: the project's own recordings, cut and repeated to one length."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from tests.corpus import AUDIO

_VOICES = ("en_16k_pcm16.wav", "es_16k_pcm16.wav")


def write_clips(folder: Path, count: int, *, duration_s: float) -> Path:
    """`count` WAV files of 16 kHz and 16 bit, each from its own place in the recordings, and their manifest with texts."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    tape = np.concatenate([decode((AUDIO / name).read_bytes()) for name in _VOICES])
    size = round(duration_s * SAMPLING_RATE)
    tape = np.resize(tape, max(len(tape), 2 * size))
    manifest = folder / f"{count}.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number, start in zip(range(count), cycle(range(0, len(tape) - size, 997)), strict=False):
            path = folder / "audio" / f"{number:06d}.wav"
            if not path.exists():
                soundfile.write(path, tape[start : start + size], SAMPLING_RATE, subtype="PCM_16")
            row = {
                "id": f"clip-{number:06d}",
                "audio": str(path),
                "text": f"This is sentence {number}.",
                "duration": duration_s,
            }
            lines.write(json.dumps(row) + "\n")
    return manifest

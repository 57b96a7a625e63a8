"""Sounds to decode, and the outcome of decoding them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.errors import Reason, RejectedRow, Stage
from tests.hostile import make_audio as make

CLIPS = sorted((Path(__file__).parents[1] / "parity" / "audio").iterdir())
SOUND = make.complete()


def reason(content: bytes, **options) -> Reason:
    """Return the reason of the reject; fail when the sound is not rejected."""
    with pytest.raises(RejectedRow) as caught:
        decode(content, **options)
    assert caught.value.stage is Stage.DECODE
    assert caught.value.detail
    return caught.value.reason


def outcome(content: bytes) -> tuple[Reason | None, float]:
    """Return the reason of the reject, or None, and the seconds of audio."""
    try:
        return None, len(decode(content)) / 16_000
    except RejectedRow as rejected:
        return rejected.reason, 0.0


def librosa_load(content: bytes, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioread, which librosa imports, wants modules that Python 3.13 drops
        return librosa.load(io.BytesIO(content), sr=16_000, **options)[0]

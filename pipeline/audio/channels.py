"""The decision of `--channels auto`: whether the channels of a recording carry different speech.

Speech of two people takes turns, so one channel is loud while the other is quiet; two microphones in one room are loud and
quiet together. docs/audio.md has the errors of this criterion on mixtures of known speakers. It costs 2 ms of CPU per second
and channel, for voice activity detection.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.segmentation import SPEECH_FRAME_S, speech_frames

_FRAME = round(SPEECH_FRAME_S * SAMPLING_RATE)
_CHUNK = 600 * SAMPLING_RATE // _FRAME * _FRAME
"""Samples for voice activity detection at once: ten minutes."""
LEAST_SPEECH_S = 0.5
"""Speech that each of two channels must have."""
MOST_CORRELATION = 0.5
"""Correlation of the levels of two channels below which their speech is different. Source: benchmarks/channels.py."""
_FLOOR = 1e-7
"""Power added before the logarithm, -70 dB below full scale, so that quiet noise does not count as a change of level."""


def carry_different_speech(channels: Sequence[NDArray[np.float32]]) -> bool:
    """Return whether at least two channels have speech, and their levels do not rise and fall together.

    The levels are the log-powers of 32 ms frames in which either channel has speech; they are compared by their correlation.

    Args:
        channels: float32 [num_samples] each, of one length, at 16 kHz.
    """
    measured = [_frames(channel) for channel in channels]
    talking = [(speech, level) for speech, level in measured if speech.sum() * SPEECH_FRAME_S >= LEAST_SPEECH_S]
    return any(
        correlation(one, other, first | second) < MOST_CORRELATION
        for (first, one), (second, other) in itertools.combinations(talking, 2)
    )


def correlation(one: NDArray[np.float64], other: NDArray[np.float64], frames: NDArray[np.bool_]) -> float:
    """Return the correlation of two levels over some of their frames; 1 for levels that are constant."""
    one, other = one[frames] - one[frames].mean(), other[frames] - other[frames].mean()
    power = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / power if power else 1.0


def _frames(channel: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return for each frame of 32 ms whether it has speech, and its level in dB."""
    speech, powers = [], []
    for start in range(0, len(channel), _CHUNK):
        chunk = channel[start : start + _CHUNK]
        frames = np.pad(chunk, (0, -len(chunk) % _FRAME)).reshape(-1, _FRAME)
        powers.append(np.square(frames).mean(axis=1, dtype=np.float64))
        speech.append(speech_frames(chunk))
    return np.concatenate(speech), 10 * np.log10(np.concatenate(powers) + _FLOOR)

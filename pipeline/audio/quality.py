"""Measurements of the sound of an utterance: level, clipping, noise and bandwidth.

They are computed from the 16 kHz waveform that the models get, after mixing down and resampling, in 0.2 ms of CPU per
second of audio.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE

_FRAME = 512
"""Samples of a frame: 32 ms."""
_FRAMES_AT_ONCE = 4096
"""Bounds the temporary memory of long recordings: 131 s."""
_CLIPPED = 0.98
"""Magnitude from which a sample counts as clipped. Resampling makes the flat tops of a clipped wave ripple below 1."""
_QUANTISATION = 2.0**-30 / 12
"""Noise power of 16-bit samples, below which no noise is measured. Digital silence would have an infinite ratio."""
_NOISE_PERCENTILE = 10
_LEAST_FRAMES = 10
_SNR_RANGE = (-20.0, 100.0)
_BAND_DB = -60.0
"""Level, relative to the strongest frequency, below which a frequency counts as absent. In speech sampled at 16 kHz or more
fricatives and noise up to 8 kHz are above it; what resampling 8 kHz audio leaves above 4 kHz is below it."""
_SMOOTHING = 4
"""Frequency bins averaged for the bandwidth: 125 Hz."""


class SoundQuality(NamedTuple):
    """Measurements of one utterance; each has a column.

    Attributes:
        loudness_dbfs: root mean square in dB relative to full scale; a sine of full scale has -3.01. None for silence.
        clipped_share: share of samples of at least 0.98 of full scale.
        snr_db: signal-to-noise ratio by minimum statistics: the noise power is the tenth percentile of the powers of 32 ms
            frames, the signal power is the rest of the mean. Too low where less than a tenth of the frames are pauses. -20 to
            100; None for less than 0.32 s, or silence.
        bandwidth_hz: highest frequency within 60 dB of the strongest, of the spectrum averaged over time; at most 8000. None for
            silence.
    """

    loudness_dbfs: float | None
    clipped_share: float | None
    snr_db: float | None
    bandwidth_hz: float | None


def sound_quality(waveform: NDArray[np.float32]) -> SoundQuality:
    """Measure the sound of a waveform, float32 [num_samples] at 16 kHz. All measurements of an empty one are None."""
    if not len(waveform):
        return SoundQuality(None, None, None, None)
    clipped, energy = 0, 0.0
    powers: list[NDArray[np.float64]] = []
    spectrum = np.zeros(_FRAME // 2 + 1)
    window = np.hanning(_FRAME).astype(np.float32)
    for start in range(0, len(waveform), _FRAMES_AT_ONCE * _FRAME):
        chunk = waveform[start : start + _FRAMES_AT_ONCE * _FRAME]
        clipped += int(np.count_nonzero(np.abs(chunk) >= _CLIPPED))
        energy += float(np.square(chunk).sum(dtype=np.float64))
        whole = chunk if len(waveform) < _FRAME else chunk[: len(chunk) // _FRAME * _FRAME]
        frames = np.pad(whole, (0, -len(whole) % _FRAME)).reshape(-1, _FRAME)
        powers.append(np.square(frames).mean(axis=1, dtype=np.float64))
        spectrum += np.square(np.abs(np.fft.rfft(frames * window, axis=1))).sum(axis=0, dtype=np.float64)
    power, clipped_share = energy / len(waveform), clipped / len(waveform)
    if not power:
        return SoundQuality(None, clipped_share, None, None)
    return SoundQuality(
        10 * float(np.log10(power)), clipped_share, _snr_db(np.concatenate(powers)), _bandwidth_hz(spectrum)
    )


def _snr_db(powers: NDArray[np.float64]) -> float | None:
    """Estimate the signal-to-noise ratio from the powers of whole frames."""
    if len(powers) < _LEAST_FRAMES:
        return None
    noise = max(float(np.percentile(powers, _NOISE_PERCENTILE)), _QUANTISATION)
    signal = max(float(powers.mean()) - noise, noise * 10 ** (_SNR_RANGE[0] / 10))
    return min(10 * float(np.log10(signal / noise)), _SNR_RANGE[1])


def _bandwidth_hz(spectrum: NDArray[np.float64]) -> float:
    """Return the highest frequency of an averaged power spectrum, [257] from 0 to 8 kHz, that is not absent."""
    smooth = np.convolve(spectrum, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="same")
    present = np.flatnonzero(smooth >= smooth.max() * 10 ** (_BAND_DB / 10))
    return float(present[-1]) * SAMPLING_RATE / _FRAME

"""Degradations of a waveform without a codec: noise, gain, clipping, a narrow band and reverberation.

Every function takes and returns mono 16 kHz float32 [num_samples] of the same length. Noise and reverberation add energy; where
the result would exceed full scale (1.0) it is scaled down as a whole, so that they never clip. Random numbers come from
the caller's generator, so equal generators give equal waveforms.
"""

from __future__ import annotations

import math

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.signal import oaconvolve

from pipeline import SAMPLING_RATE

Waveform = NDArray[np.float32]

_FRAME = SAMPLING_RATE // 50
"""Samples of a frame of 20 ms."""
_ACTIVE = 1e-3
"""Power of a frame, as a share of the loudest frame's, from which it counts as speech: 30 dB below."""
_LOWEST_HZ = 20.0
"""Frequency below which pink noise is flat; its power would be infinite at 0 Hz."""


def active(waveform: Waveform) -> Waveform:
    """Return the samples of the frames of 20 ms that are at most 30 dB below the loudest frame.

    A last frame that is not full is left out. A clip shorter than one frame is returned whole.
    """
    if len(waveform) < _FRAME:
        return waveform
    frames = waveform[: len(waveform) // _FRAME * _FRAME].reshape(-1, _FRAME)
    powers = np.mean(np.square(frames, dtype=np.float64), axis=1)
    loud: Waveform = frames[powers >= _ACTIVE * powers.max()].ravel()
    return loud


def power(waveform: Waveform) -> float:
    """Return the mean square of the samples."""
    return float(np.mean(np.square(waveform, dtype=np.float64)))


def white_noise(waveform: Waveform, snr_db: float, random: np.random.Generator) -> Waveform:
    """Add white Gaussian noise at an SNR; see `_with_noise`."""
    return _with_noise(waveform, random.standard_normal(len(waveform), dtype=np.float32), snr_db)


def pink_noise(waveform: Waveform, snr_db: float, random: np.random.Generator) -> Waveform:
    """Add Gaussian noise whose power falls by 3 dB per octave, at an SNR; see `_with_noise`."""
    size = next_fast_len(len(waveform), real=True)
    falling = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLING_RATE), _LOWEST_HZ) ** -0.5
    spectrum = np.fft.rfft(random.standard_normal(size)) * falling
    return _with_noise(waveform, _first(np.fft.irfft(spectrum, size), len(waveform)), snr_db)


def speech_noise(waveform: Waveform, snr_db: float, random: np.random.Generator) -> Waveform:
    """Add noise with the long-term spectrum of the clip itself, at an SNR: the clip's spectrum with random phases."""
    size = next_fast_len(len(waveform), real=True)
    magnitudes = np.abs(np.fft.rfft(waveform, size))
    phases = random.uniform(0, 2 * np.pi, len(magnitudes))
    noise = np.fft.irfft(magnitudes * np.exp(1j * phases), size)
    return _with_noise(waveform, _first(noise, len(waveform)), snr_db)


def _with_noise(waveform: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Add noise at a ratio of the power of the active frames (`active`) to the power of the noise over the whole clip.

    A silent clip, which has no SNR, is returned unchanged.
    """
    speech, hiss = power(active(waveform)), power(noise)
    if not speech or not hiss:
        return waveform
    return _within_full_scale(waveform + noise * np.float32(math.sqrt(speech / hiss / 10 ** (snr_db / 10))))


def gain(waveform: Waveform, gain_db: float, _random: np.random.Generator) -> Waveform:
    """Scale and limit to full scale, without rounding to 16 bits, which would add noise to a quiet clip."""
    scaled: Waveform = np.clip(waveform * np.float32(10 ** (gain_db / 20)), -1, 1)
    return scaled


def clipping(waveform: Waveform, percent: float, _random: np.random.Generator) -> Waveform:
    """Limit the loudest samples: `percent` of the samples of the active frames reach the limit. The level stays."""
    limit = np.float32(np.quantile(np.abs(active(waveform)), 1 - percent / 100))
    return np.clip(waveform, -limit, limit) if limit > 0 else waveform


def narrowband(waveform: Waveform, rate_khz: float, _random: np.random.Generator) -> Waveform:
    """Resample to a lower rate and back with soxr HQ, as the job resamples; what is above half that rate is lost."""
    return from_rate(to_rate(waveform, rate_khz), rate_khz, len(waveform))


def to_rate(waveform: Waveform, rate_khz: float) -> Waveform:
    """Resample from 16 kHz."""
    lower: Waveform = soxr.resample(waveform, SAMPLING_RATE, rate_khz * 1000, quality="HQ")
    return lower


def from_rate(waveform: Waveform, rate_khz: float, num_samples: int) -> Waveform:
    """Resample to 16 kHz, and to exactly `num_samples`."""
    return _first(soxr.resample(waveform, rate_khz * 1000, SAMPLING_RATE, quality="HQ"), num_samples)


def impulse_response(rt60_s: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Return the impulse response of a synthetic room.

    The direct sound is 1 at sample 0. White Gaussian noise follows, whose level falls by 60 dB in `rt60_s`, where it ends;
    its energy is that of the direct sound (a direct-to-reverberant ratio of 0 dB).
    """
    time_s = np.arange(1, max(2, round(rt60_s * SAMPLING_RATE))) / SAMPLING_RATE
    tail = random.standard_normal(len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    return np.concatenate([[1.0], tail / np.sqrt(np.sum(tail**2))])


def reverberation(waveform: Waveform, rt60_s: float, random: np.random.Generator) -> Waveform:
    """Convolve with `impulse_response`, cut what sounds after the clip's end, and restore the power of the clip."""
    room = oaconvolve(waveform.astype(np.float64), impulse_response(rt60_s, random))[: len(waveform)]
    loudness = power(room.astype(np.float32))
    if not loudness:
        return waveform
    return _within_full_scale((room * math.sqrt(power(waveform) / loudness)).astype(np.float32))


def _within_full_scale(waveform: Waveform) -> Waveform:
    return waveform / np.float32(max(1.0, float(np.abs(waveform).max())))


def _first(waveform: NDArray[np.floating], num_samples: int) -> Waveform:
    """Cut or pad to a length with zeros."""
    missing = max(0, num_samples - len(waveform))
    return np.pad(waveform, (0, missing))[:num_samples].astype(np.float32)

"""Degradation of recordings for training and tests: noise, telephone, dull microphone, lossy codec."""

from __future__ import annotations

import io

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from tools.demo_models.acting import SAMPLING_RATE

_MU = 255.0
Waveform = NDArray[np.float32]


def degrade(rng: np.random.Generator, waveform: Waveform, *, others: Waveform | None = None) -> Waveform:
    """Return a degraded copy, with noise in 65 % and a narrower channel in 30 % of the cases, at a random level.

    Args:
        waveform: float32 [num_samples] at 16 kHz; the length stays.
        others: somebody else's speech, of any length, for babble.
    """
    degraded = waveform
    channel = rng.random()
    if channel < 0.15:
        degraded = telephone(degraded)
    elif channel < 0.25:
        degraded = dull(degraded, cutoff_hz=float(rng.uniform(2_500, 6_000)))
    elif channel < 0.30:
        degraded = lossy(degraded)
    if rng.random() < 0.65:
        degraded = add_noise(rng, degraded, snr_db=float(rng.uniform(12, 45)), others=others)
    peak = max(float(np.abs(degraded).max()), 1e-4)
    return (degraded * (10 ** (rng.uniform(-24, -0.5) / 20) / peak)).astype(np.float32)


def add_noise(
    rng: np.random.Generator, waveform: Waveform, *, snr_db: float, others: Waveform | None = None
) -> Waveform:
    """Add white, pink or brown noise, hum or babble at a signal-to-noise ratio."""
    kind = rng.integers(5)
    if kind == 4 and others is not None and len(others):
        start = int(rng.integers(len(others)))
        noise = np.resize(np.roll(others, -start), len(waveform)) + np.resize(others[::-1], len(waveform))
    elif kind == 3:
        time = np.arange(len(waveform)) / SAMPLING_RATE
        tone = float(rng.choice([50.0, 60.0, 120.0]))
        noise = sum(np.sin(2 * np.pi * tone * n * time) / n for n in (1, 2, 3, 5)) + 0.1 * rng.standard_normal(
            len(time)
        )
    else:
        noise = _coloured(rng, len(waveform), slope=float(min(kind, 2)))
    power = float(np.mean(waveform**2)) + 1e-9
    scale = np.sqrt(power / (float(np.mean(noise**2)) + 1e-12) * 10 ** (-snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def _coloured(rng: np.random.Generator, count: int, *, slope: float) -> Waveform:
    """Return noise whose amplitude falls as frequency to the power of slope/2: 0 white, 1 pink, 2 brown."""
    noise = rng.standard_normal(_fast(count), dtype=np.float32)
    if slope:
        frequency = np.maximum(np.fft.rfftfreq(len(noise), 1 / SAMPLING_RATE), 20.0)
        noise = np.fft.irfft(np.fft.rfft(noise) * frequency ** (-slope / 2), len(noise)).astype(np.float32)
    return noise[:count]


def _fast(count: int) -> int:
    """Return a length of at least this size with small factors, for the Fourier transform."""
    return -(-count // 2_000) * 2_000


def telephone(waveform: Waveform) -> Waveform:
    """8 kHz and mu-law, there and back."""
    narrow = soxr.resample(waveform, SAMPLING_RATE, SAMPLING_RATE / 2)
    peak = max(float(np.abs(narrow).max()), 1e-4)
    companded = np.sign(narrow) * np.log1p(_MU * np.abs(narrow) / peak) / np.log1p(_MU)
    levels = np.round(companded * 127) / 127
    restored = np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(_MU)) / _MU * peak
    return _fit(soxr.resample(restored, SAMPLING_RATE / 2, SAMPLING_RATE), len(waveform))


def dull(waveform: Waveform, *, cutoff_hz: float) -> Waveform:
    """Remove frequencies above a cut-off."""
    padded = _fit(waveform, _fast(len(waveform)))
    frequency = np.fft.rfftfreq(len(padded), 1 / SAMPLING_RATE)
    rolled = np.fft.rfft(padded) / np.sqrt(1 + (frequency / cutoff_hz) ** 16)
    return np.fft.irfft(rolled, len(padded))[: len(waveform)].astype(np.float32)


def lossy(waveform: Waveform, *, bit_rate: int = 24_000) -> Waveform:
    """Encode as MP3 at a speech bit rate and decode again."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLING_RATE, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[np.newaxis]), format="fltp", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content.seek(0)
    with av.open(content) as container:
        degraded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return _fit(degraded, len(waveform))


def _fit(waveform: NDArray[np.floating], count: int) -> Waveform:
    return np.pad(waveform, (0, max(0, count - len(waveform))))[:count].astype(np.float32)

"""The degradations of a stress test, measured back on signals with known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import welch

from pipeline import SAMPLING_RATE
from pipeline.analytics.stress.conditions import CONDITIONS, parse_conditions
from pipeline.analytics.stress.signals import power
from pipeline.errors import ConfigError

SECOND = SAMPLING_RATE


def tone(amplitude: float, *, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * SECOND)) / SECOND)).astype(np.float32)


def with_pause(amplitude: float) -> np.ndarray:
    """A second of a tone, then a second of digital silence: the speech level is that of the tone, amplitude² / 2."""
    return np.concatenate([tone(amplitude), np.zeros(SECOND, np.float32)])


def degrade(name: str, waveform: np.ndarray, level: float, *, recording_id: str = "clip", seed: int = 0) -> np.ndarray:
    degraded = CONDITIONS[name].apply(waveform, level, recording_id=recording_id, seed=seed)
    assert degraded.dtype == np.float32 and degraded.shape == waveform.shape and np.isfinite(degraded).all()
    return degraded


def speech(seconds: float = 2.0) -> np.ndarray:
    """Noise with the envelope of syllables, which every codec for speech passes."""
    time_s = np.arange(int(seconds * SECOND)) / SECOND
    voice = sum(np.sin(2 * np.pi * 130 * harmonic * time_s) / harmonic for harmonic in range(1, 20))
    return (0.15 * voice * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time_s))).astype(np.float32)


@pytest.mark.parametrize("name", ["white_noise", "pink_noise", "speech_noise"])
@pytest.mark.parametrize("snr_db", [20, 10, 0])
def test_noise_has_the_stated_snr(name, snr_db):
    """Fails if the SNR is of the whole clip instead of its speech, of amplitudes instead of powers, or off by 0.1 dB."""
    clip = with_pause(0.05)
    noise = degrade(name, clip, snr_db) - clip
    assert 10 * np.log10(0.05**2 / 2 / power(noise)) == pytest.approx(snr_db, abs=0.1)


def test_noise_never_clips_and_keeps_its_snr():
    """Fails if a loud clip with noise exceeds full scale, or is limited instead of scaled."""
    clip = with_pause(0.99)
    degraded = degrade("white_noise", clip, 0)
    assert np.abs(degraded).max() == pytest.approx(1.0)
    scale = float(degraded @ clip) / float(clip @ clip)
    assert 10 * np.log10(power(scale * clip[:SECOND]) / power(degraded - scale * clip)) == pytest.approx(0, abs=0.1)


def test_pink_noise_falls_by_3_db_per_octave():
    """Fails if pink noise is white or brown."""
    clip = tone(1e-3, seconds=20)
    frequencies, density = welch(degrade("pink_noise", clip, 0) - clip, SECOND, nperseg=4096)
    band = (frequencies > 100) & (frequencies < 6000)
    slope, _ = np.polyfit(np.log2(frequencies[band]), 10 * np.log10(density[band]), 1)
    assert slope == pytest.approx(-3.01, abs=0.2)


def test_speech_noise_has_the_spectrum_of_its_clip_and_not_its_envelope():
    """Fails if the noise is white, or the clip itself."""
    clip = with_pause(0.01)
    noise = degrade("speech_noise", clip, 0) - clip
    frequencies, density = welch(noise, SECOND, nperseg=4096)
    assert density[abs(frequencies - 440) < 20].sum() / density.sum() > 0.95
    assert power(noise[SECOND:]) == pytest.approx(power(noise[:SECOND]), rel=0.5)


def test_levels_share_their_noise():
    """Fails if each level draws other noise, so that a difference between levels could be chance."""
    clip = with_pause(0.01)
    mild, severe = (degrade("white_noise", clip, snr) - clip for snr in (20, 0))
    assert severe == pytest.approx(10 * mild, abs=1e-6)


def test_gain_scales_and_limits():
    """Fails if decibels are of power, a quiet clip is rounded, or a loud one exceeds full scale."""
    assert degrade("gain", tone(0.5), -60) == pytest.approx(0.001 * tone(0.5), rel=1e-6)
    loud = degrade("gain", tone(0.5), 12)
    assert loud.min() == -1 and loud.max() == 1 and (np.abs(loud) == 1).mean() > 0.5


@pytest.mark.parametrize("percent", [1, 5, 20])
def test_clipping_limits_the_stated_share_of_speech(percent):
    """Fails if the share is of the whole clip, whose pause would count, or the level is raised again."""
    random = np.random.default_rng(0).uniform(-0.8, 0.8, SECOND).astype(np.float32)
    clip = np.concatenate([random, np.zeros(SECOND, np.float32)])
    clipped = degrade("clipping", clip, percent)
    limit = np.abs(clipped).max()
    assert (np.abs(clipped[:SECOND]) == limit).mean() == pytest.approx(percent / 100, abs=1e-3)
    assert limit == pytest.approx(0.8 * (1 - percent / 100), abs=0.01)
    untouched = np.abs(clip) < limit
    assert np.array_equal(clipped[untouched], clip[untouched])


@pytest.mark.parametrize("name, level", [("narrowband", 8), ("mu_law", 64), ("a_law", 64)])
def test_telephone_band_ends_below_4_khz(name, level):
    """Fails if the sampling rate is not lowered, or the band that remains changes its level or its time."""
    noise = np.random.default_rng(1).normal(0, 0.1, 4 * SECOND).astype(np.float32)
    narrow = degrade(name, noise, level)
    frequencies, before = welch(noise, SECOND, nperseg=1024)
    _, after = welch(narrow, SECOND, nperseg=1024)
    ratio_db = 10 * np.log10(after / before)
    assert ratio_db[(frequencies > 200) & (frequencies < 3400)] == pytest.approx(0, abs=0.3)
    assert ratio_db[frequencies > 4300].max() < -30
    assert np.argmax(_lags(narrow, noise)) == 100


def _lags(degraded: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Correlation at delays of -100 to 100 samples, so that no delay is at position 100."""
    middle = clip[200:-200]
    return np.array([degraded[200 + lag : 200 + lag + len(middle)] @ middle for lag in range(-100, 101)])


@pytest.mark.parametrize("name", ["mu_law", "a_law"])
def test_g711_quantises_as_8_bits_of_companding_do(name):
    """Fails if the samples are not companded: 8 linear bits give another ratio, no quantisation an infinite one."""
    clip = tone(0.3, seconds=2)
    middle = slice(SECOND // 2, -SECOND // 2)
    error = (degrade(name, clip, 64) - clip)[middle]
    assert 34 < 10 * np.log10(power(clip[middle]) / power(error)) < 42


@pytest.mark.parametrize("name, level", [("opus", 24), ("opus", 6), ("mp3", 32), ("mp3", 8)])
@pytest.mark.parametrize("num_samples", [2 * SECOND, 23_457])
def test_codecs_keep_length_and_time(name, level, num_samples):
    """Fails if a codec's delay or padding remains, if the end is cut, or if nothing was encoded at all."""
    clip = speech()[:num_samples]
    coded = degrade(name, clip, level)
    assert abs(int(np.argmax(_lags(coded, clip))) - 100) <= 4
    assert 0.5 < np.corrcoef(coded, clip)[0, 1] < 0.99999


def test_lower_bit_rates_lose_more():
    """Fails if the bit rate does not reach the encoder."""
    clip = speech()
    for name in ("opus", "mp3"):
        errors = [power(degrade(name, clip, level) - clip) for level in CONDITIONS[name].levels]
        assert errors == sorted(errors) and errors[-1] > 1.3 * errors[0]


def test_a_clip_shorter_than_a_frame_of_any_codec():
    """Fails if the shortest clip that the job accepts breaks a condition."""
    clip = speech()[:560]
    for variant in parse_conditions([]):
        degrade(variant.condition.name, clip, variant.level)


@pytest.mark.parametrize("rt60_s", [0.3, 0.6, 1.2])
def test_reverberation_decays_in_the_stated_time(rt60_s):
    """Fails if the decay is of amplitude instead of power, or the clip is delayed. Measured as T30 (ISO 3382-1)."""
    clip = np.zeros(2 * SECOND, np.float32)
    clip[0] = 0.5
    response = degrade("reverberation", clip, rt60_s).astype(np.float64)
    assert np.argmax(np.abs(response)) == 0
    decay_db = 10 * np.log10(np.maximum(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2), 1e-12))
    part = (decay_db < -5) & (decay_db > -35)
    slope, _ = np.polyfit(np.flatnonzero(part) / SECOND, decay_db[part], 1)
    assert -60 / slope == pytest.approx(rt60_s, rel=0.05)
    assert response[0] ** 2 == pytest.approx(np.sum(response[1:] ** 2), rel=0.01)


def test_reverberation_keeps_the_level():
    """Fails if a reverberated clip is louder, so that level and reverberation could not be told apart."""
    clip = 0.3 * speech()
    assert power(degrade("reverberation", clip, 0.6)) == pytest.approx(power(clip), rel=1e-4)


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_the_seed_decides_everything(name):
    """Fails if a condition draws from global random state, or from anything but seed, clip and condition."""
    clip, level = 0.1 * speech(), CONDITIONS[name].levels[-1]
    first = degrade(name, clip, level)
    np.random.seed(7)
    assert np.array_equal(degrade(name, clip, level), first)
    drawn = name in ("white_noise", "pink_noise", "speech_noise", "reverberation")
    assert np.array_equal(degrade(name, clip, level, seed=1), first) != drawn
    assert np.array_equal(degrade(name, clip, level, recording_id="other"), first) != drawn


def test_conditions_are_parsed():
    """Fails if levels are lost or reordered, or a dash is another name than an underscore."""
    variants = parse_conditions(["white-noise=15,-5", "opus"])
    assert [(v.name, v.severity) for v in variants] == [
        ("white_noise-15", 1), ("white_noise--5", 2), ("opus-24", 1), ("opus-12", 2), ("opus-6", 3)
    ]  # fmt: skip
    assert {v.condition.name for v in parse_conditions([])} == set(CONDITIONS)


@pytest.mark.parametrize(
    "words, message",
    [
        (["opuss"], "did you mean 'opus'"),
        (["opus", "opus=6"], "names opus twice"),
        (["opus=5"], "'5' is not a level; kbit/s of 6 to 256"),
        (["mp3=33"], "'33' is not a level"),
        (["gain=loud"], "'loud' is not a level"),
        (["gain=nan"], "'nan' is not a level"),
        (["gain=-6,-6"], "a level is named twice"),
    ],
)
def test_bad_conditions_are_refused(words, message):
    """Fails if a condition that cannot be run is accepted, or the message does not say what can."""
    with pytest.raises(ConfigError, match=message):
        parse_conditions(words)

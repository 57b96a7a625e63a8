"""The sound of utterances, on signals whose level, clipping, noise and bandwidth are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soxr

import pipeline
from pipeline import SAMPLING_RATE
from pipeline.audio import quality
from pipeline.audio.quality import SoundQuality, sound_quality
from pipeline.config.settings import Settings
from tests.support.corpus import ROOT
from tests.support.shards import CLIP, by_hand, models_of, parts, work_of

_COLUMNS = [*SoundQuality._fields, "speech_share"]


def sine(hz: float, amplitude: float = 1.0, seconds: float = 3.0, rate: int = SAMPLING_RATE) -> np.ndarray:
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return wave.astype(np.float32)


def noise(seconds: float = 10.0, level: float = 0.05, rate: int = SAMPLING_RATE) -> np.ndarray:
    return (np.random.default_rng(3).normal(size=round(seconds * rate)) * level).astype(np.float32)


@pytest.mark.parametrize("amplitude", [1.0, 0.1, 0.003])
def test_loudness_is_the_root_mean_square_below_full_scale(amplitude):
    """Fails if the level is that of the peak, of one frame, or not in dB."""
    assert sound_quality(sine(440, amplitude)).loudness_dbfs == pytest.approx(
        20 * np.log10(amplitude / 2**0.5), abs=0.01
    )
    square = np.sign(sine(440, 1.0, 3.01)) * np.float32(amplitude)
    assert sound_quality(square).loudness_dbfs == pytest.approx(20 * np.log10(amplitude), abs=0.01)


@pytest.mark.parametrize(("gain", "share"), [(0.9, 0.0), (2.0, 2 / 3), (1.25, 1 - 2 / np.pi * np.arcsin(0.8))])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clipping_is_found_after_resampling(gain, share, rate):
    """Fails if flat tops that resampling made ripple are missed, or loud audio counts as clipped."""
    wave = soxr.resample(np.clip(sine(220, gain, rate=rate), -1, 1), rate, SAMPLING_RATE)
    assert sound_quality(wave).clipped_share == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("snr", [0, 10, 20, 40])
def test_the_noise_is_that_of_the_pauses(snr):
    """Fails if the ratio of bursts to steady noise is off by more than 1 dB."""
    generator = np.random.default_rng(snr)
    bursts = generator.normal(size=40 * 8000) * np.repeat(generator.permutation(40) < 24, 8000)
    bursts = np.convolve(bursts, np.hanning(9), "same")
    hiss = generator.normal(size=bursts.size)
    bursts *= np.sqrt(np.square(hiss).mean() / np.square(bursts).mean()) * 10 ** (snr / 20)
    measured = sound_quality(((bursts + hiss) * 1e-3).astype(np.float32)).snr_db
    assert measured == pytest.approx(snr, abs=1.0)


@pytest.mark.parametrize(("rate", "hz"), [(6_000, 3000), (8_000, 4000), (11_025, 5512), (16_000, 8000), (48_000, 8000)])
def test_the_bandwidth_is_that_of_the_source(rate, hz):
    """Fails if 8 kHz audio in a 16 kHz file looks like any other."""
    wave = soxr.resample(noise(rate=rate), rate, SAMPLING_RATE)
    assert sound_quality(wave).bandwidth_hz == pytest.approx(hz, rel=0.03)


def test_silence_and_nothing_have_no_measurements():
    """Fails if digital silence becomes minus infinity, or an empty or very short waveform an error."""
    assert sound_quality(np.zeros(16_000, np.float32)) == SoundQuality(None, 0.0, None, None)
    assert sound_quality(np.zeros(0, np.float32)) == SoundQuality(None, None, None, None)
    short = sound_quality(noise(0.01))
    assert short.snr_db is None and short.loudness_dbfs == pytest.approx(-26, abs=2) and short.bandwidth_hz > 7000


def test_a_long_recording_is_measured_in_pieces(monkeypatch):
    """Fails if a value depends on how much audio is processed at once."""
    wave = np.concatenate([noise(2.0, 0.2), sine(300, 1.5, 1.0).clip(-1, 1), noise(2.003, 0.001)])
    whole = sound_quality(wave)
    monkeypatch.setattr(quality, "_FRAMES_AT_ONCE", 7)
    assert sound_quality(wave) == pytest.approx(whole, rel=1e-9)


def test_every_utterance_has_its_own(tmp_path, checkpoints):
    """Fails if a dataset with the setting lacks a value, one without it has one, or an utterance has its neighbour's."""
    words = {"text": "words", "language": "en"}
    records = [
        {"id": "plain", "audio": CLIP, **words}, {"id": "gone", "audio": "/nowhere/a.wav", **words},
        {"id": "half", "audio": CLIP, "duration": 0.5, **words},
    ]  # fmt: skip
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    by_hand(replace(work, plan=replace(work.plan, settings=replace(work.plan.settings, sound_quality=True))))
    half, plain = (row for row in parts(work).to_pylist())
    for name in _COLUMNS:
        assert half[name] is not None and plain[name] is not None, name
    assert half["loudness_dbfs"] != plain["loudness_dbfs"] and 0.5 < plain["speech_share"] <= 1
    old = work_of(tmp_path / "old", records, models_of(checkpoints, "mean", ["en"]))
    by_hand(old)
    assert {row[name] for row in parts(old).to_pylist() for name in _COLUMNS} == {None}
    assert (
        "sound_quality" not in old.plan.settings.document()
        and Settings.of(old.plan.settings.document()) == old.plan.settings
    )


def test_it_can_be_turned_off():
    """Fails if an annotator has no measurements by default, or has them with `no_sound_quality`."""
    audio = str(ROOT / "demo/corpus/audio/ada-prizes.wav")
    for off in (False, True):
        annotator = pipeline.Annotator(
            mode="audio", emotion_model=str(ROOT / "demo/models/audio-en"), no_sound_quality=off
        )
        [utterance] = annotator.annotate(audio)
        assert [getattr(utterance, name) is None for name in _COLUMNS] == [off] * len(_COLUMNS)

"""Filter banks against the extractor of the reference system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from pipeline.audio.decode import decode
from pipeline.models.networks.fbank import HOP, WINDOW, FilterBanks, num_frames

AUDIO = Path(__file__).parents[1] / "parity" / "audio"
CHANCE = np.random.default_rng(7)
SPEECH = {path.name: decode(path.read_bytes()) for path in sorted(AUDIO.iterdir()) if path.suffix != ".txt"}
MADE = {
    f"noise of {count} samples": CHANCE.normal(0, 0.1, count).astype(np.float32)
    for count in (560, 719, 720, 16_000, 16_080)
}


@pytest.fixture(scope="module")
def extractor() -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor()


def reference(extractor, waveforms, max_frames=16_000):
    found = extractor(waveforms, sampling_rate=16_000, max_length=max_frames, truncation=True, return_tensors="np")
    return found["input_features"], found["attention_mask"]


@pytest.mark.parametrize("name", [*SPEECH, *MADE])
def test_features_are_the_reference_extractors(extractor, name):
    """Fails if a window, filter, floor or normalisation differs, or the last half frame is treated otherwise."""
    waveform = {**SPEECH, **MADE}[name]
    features, mask = FilterBanks(extractor, max_frames=16_000)([waveform])
    expected, expected_mask = reference(extractor, [waveform])
    assert features.dtype == torch.float32
    assert features.shape == expected.shape
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5 if name in SPEECH else 1e-3)
    np.testing.assert_array_equal(mask.numpy(), expected_mask)


def test_a_batch_is_padded_as_the_reference_pads(extractor):
    """Fails if padding has another value or place, or the mask counts half a frame of it."""
    waveforms = [waveform[:40_000] for waveform in SPEECH.values()] + list(MADE.values())
    features, mask = FilterBanks(extractor, max_frames=16_000)(waveforms)
    expected, expected_mask = reference(extractor, waveforms)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-3)
    np.testing.assert_array_equal(mask.numpy(), expected_mask)


@pytest.mark.parametrize("max_frames", [50, 52])
def test_a_long_clip_is_normalised_before_it_is_cut(extractor, max_frames):
    """Fails if mean and deviation are taken of the part that is kept: the reference takes them of the whole clip."""
    waveform = SPEECH["en_16k_pcm16.wav"]
    features, mask = FilterBanks(extractor, max_frames=max_frames)([waveform])
    expected, expected_mask = reference(extractor, [waveform], max_frames)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(mask.numpy(), expected_mask)


def test_a_quiet_or_constant_clip_stays_finite(extractor):
    """Fails if silence divides by its own deviation."""
    clips = [np.zeros(16_000, np.float32), np.full(16_000, 0.3, np.float32), np.full(560, 1e-30, np.float32)]
    features, _ = FilterBanks(extractor, max_frames=16_000)(clips)
    assert bool(torch.isfinite(features).all())
    assert float(features.abs().max()) < 0.1


def test_frames_are_counted_as_they_come_out(extractor):
    """Fails if the count by which truncation is flagged is not the number of frames there are."""
    for count in (WINDOW + HOP, WINDOW + 2 * HOP - 1, WINDOW + 2 * HOP, 16_001):
        features, _ = FilterBanks(extractor, max_frames=16_000)([MADE["noise of 16080 samples"][:count]])
        assert features.shape[1] == -(-num_frames(min(count, 16_080)) // 2)


def test_a_clip_of_many_pieces_is_normalised_as_one(extractor):
    """Fails if mean and variance merged from piece to piece are not those of the whole, whatever the pieces differ in."""
    loud = np.concatenate([waveform * scale for waveform in SPEECH.values() for scale in (0.01, 1.0)])
    waveform = np.tile(loud, -(-95 * 16_000 // len(loud)))[: 95 * 16_000 + 77]
    for max_frames in (16_000, 5_000):
        features, mask = FilterBanks(extractor, max_frames=max_frames)([waveform])
        expected, expected_mask = reference(extractor, [waveform], max_frames)
        np.testing.assert_allclose(features.numpy(), expected, atol=1e-4)
        np.testing.assert_array_equal(mask.numpy(), expected_mask)

"""Log-mel features against faster-whisper's extractor on the padded waveform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor

from pipeline.audio.decode import decode
from pipeline.models.networks.logmel import LogMel

AUDIO = Path(__file__).parents[1] / "parity" / "audio"
WINDOW = 480_000
CHANCE = np.random.default_rng(7)
LONG = decode((AUDIO / "en_16k_long.flac").read_bytes())[:WINDOW]
CLIPS = {path.name: decode(path.read_bytes())[:WINDOW] for path in sorted(AUDIO.iterdir()) if path.suffix != ".txt"}
CLIPS |= {f"speech of {count} samples": LONG[:count] for count in (16_001, 479_599, 479_600, 479_999, WINDOW)}
CLIPS |= {f"noise of {n} samples": CHANCE.normal(0, 0.1, n).astype(np.float32) for n in (1, 199, 200, 201, 400, 8_000)}
CLIPS |= {"nothing": np.zeros(0, np.float32), "silence": np.zeros(8_000, np.float32)}
CLIPS |= {"tone": (0.3 * np.sin(np.arange(40_000) / 6)).astype(np.float32)}
BOUND = 2e-5


def reference(extractor: FeatureExtractor, waveform: np.ndarray) -> np.ndarray:
    return extractor(np.pad(waveform, (0, WINDOW - len(waveform))), padding=0)


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("name", list(CLIPS))
def test_features_are_faster_whispers(name, num_mels):
    """Fails if a window, filter, floor or edge differs, or what follows a clip is not the silence of its own dynamic range."""
    extractor = FeatureExtractor(feature_size=num_mels)
    features = LogMel(extractor)([CLIPS[name]])
    expected = reference(extractor, CLIPS[name])
    assert features.dtype == torch.float32 and features.is_contiguous()
    assert features.shape == (1, num_mels, 3000) == (1, *expected.shape)
    np.testing.assert_allclose(features[0].numpy(), expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("change", ["one sample late", "a thousandth louder", "frames padded"])
def test_the_bound_is_tight(change):
    """The control: differences that nobody would hear must not pass for equal."""
    extractor, waveform = FeatureExtractor(), CLIPS["en_16k_pcm16.wav"]
    features = LogMel(extractor)([waveform])[0].numpy()
    if change == "frames padded":
        frames = extractor(waveform)[:, :3000]
        other = np.pad(frames, ((0, 0), (0, 3000 - frames.shape[1])))
    else:
        other = reference(extractor, np.roll(waveform, 1) if change == "one sample late" else waveform * 1.001)
    assert np.abs(features - other).max() > 5 * BOUND


def test_a_clip_is_itself_in_any_batch():
    """Fails if a clip takes the padding, the loudness or the place of a neighbour."""
    log_mel, clips = LogMel(FeatureExtractor()), list(CLIPS.values())
    together = log_mel(clips).numpy()
    for row, clip in enumerate(clips):
        np.testing.assert_allclose(together[row], log_mel([clip])[0].numpy(), rtol=0, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1, "the control"


def test_what_the_window_cannot_hold_is_refused():
    """Fails if the end of a waveform is dropped in silence."""
    with pytest.raises(ValueError, match="480001 samples"):
        LogMel(FeatureExtractor())([np.zeros(8_000, np.float32), np.zeros(WINDOW + 1, np.float32)])

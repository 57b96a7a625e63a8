"""Short windows of Whisper's encoder: the utterance's own output, then that of silence at the same positions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ctranslate2 import StorageView
from ctranslate2.models import Whisper
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor

from pipeline.models.encoder import WINDOW_S, Encoder
from tests.models.test_whisper_batch import CLIPS

QUIET = (CLIPS[0] * 0.01).astype(np.float32)
"""The first clip at -40 dB: the silence after it has another value."""


@pytest.fixture(scope="module")
def whisper(asr: Path) -> WhisperModel:
    return WhisperModel(str(asr), device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True)


class Counting:
    """The real encoder, which remembers the features it was given."""

    def __init__(self, whisper: WhisperModel) -> None:
        self.given: list[np.ndarray] = []
        self.feature_extractor = whisper.feature_extractor
        self.model = SimpleNamespace(encode=self._encode)
        self._real: Whisper = whisper.model

    def _encode(self, features: StorageView) -> StorageView:
        self.given.append(np.array(features))
        return self._real.encode(features)


def padded(waveform: np.ndarray) -> np.ndarray:
    """faster-whisper's own features of the padded waveform, [80, 3000]."""
    return FeatureExtractor()(np.pad(waveform, (0, WINDOW_S * 16_000 - len(waveform))), padding=0)


@pytest.mark.parametrize(
    ("duration_s", "expected_s"),
    [(0.1, 1.5), (0.5, 1.5), (0.51, 2.0), (3.6, 5.0), (28.5, 29.5), (29.0, 30), (29.01, 30), (30.0, 30)],
)
def test_a_window_is_the_clip_and_a_second(whisper, duration_s, expected_s):
    """Fails if a short window ends with the speech, is longer than it must be, or passes the model's 30 s."""
    num_samples = round(duration_s * 16_000)
    assert Encoder(whisper, device="cpu", window="short").window_s(num_samples) == expected_s
    assert Encoder(whisper, device="cpu", window="full").window_s(num_samples) == WINDOW_S


def test_own_output_then_silence(whisper):
    """Fails if a short window encodes other frames than the clip's, or its end is not silence at the same positions."""
    counting = Counting(whisper)
    encoded = np.array(Encoder(counting, device="cpu", window="short")([CLIPS[0]]))
    own, silence = counting.given
    frames = own.shape[2]
    assert len(CLIPS[0]) / 160 + 100 <= frames < 1_000
    np.testing.assert_allclose(own[0], padded(CLIPS[0])[:, :frames], atol=1e-4)
    level = padded(CLIPS[0])[0, -1]
    assert silence.shape == (1, 80, 3_000) and np.unique(silence).tolist() == [round(float(level) * 4) / 4]
    whole = np.array(whisper.model.encode(StorageView.from_array(silence)))
    cut = np.array(whisper.model.encode(StorageView.from_array(own)))
    assert encoded.shape == whole.shape == (1, 1_500, whole.shape[2])
    np.testing.assert_array_equal(encoded[:, : frames // 2], cut)
    np.testing.assert_array_equal(encoded[:, frames // 2 :], whole[:, frames // 2 :])
    # the control: the beginning of the silence in its place would differ
    assert np.abs(whole[:, frames // 2 :] - whole[:, : -frames // 2]).max() > 0.1


def test_silence_is_encoded_once_for_each_level(whisper):
    """Fails if each clip pays for 30 s of silence, or a quiet clip gets the silence of a loud one."""
    counting = Counting(whisper)
    encoder = Encoder(counting, device="cpu", window="short")
    for waveform in (CLIPS[0], QUIET, CLIPS[0], QUIET):
        encoder([waveform])
    silences = [float(features[0, 0, 0]) for features in counting.given if features.shape[2] == 3_000]
    assert len(silences) == len(set(silences)) == 2 and len(counting.given) == 6


def test_a_row_has_its_own_silence_in_a_batch(whisper):
    """Fails if a row of a batch is completed with the silence of its neighbour."""
    encoder = Encoder(whisper, device="cpu", window="short")
    alone = [np.array(encoder([waveform]))[0] for waveform in (CLIPS[0], QUIET)]
    together = np.array(encoder([QUIET, CLIPS[0]]))[::-1]
    frames = round(encoder.window_s(len(QUIET)) * 50)
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)
    assert np.abs(alone[0][frames:] - alone[1][frames:]).max() > 0.01


def test_a_full_window_is_encoded_whole(whisper):
    """Fails if the reference's window is cut, or a clip of nearly 30 s is completed with frames that do not exist."""
    for window, waveform in (("full", CLIPS[0]), ("short", np.resize(CLIPS[0], round(29.5 * 16_000)))):
        counting = Counting(whisper)
        encoded = np.array(Encoder(counting, device="cpu", window=window)([waveform]))
        assert [features.shape[2] for features in counting.given] == [3_000] and encoded.shape[1] == 1_500

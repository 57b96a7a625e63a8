"""Speech to text on the small Whisper: what it is given, and what is kept of what it says; test_listening asks if it is right."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from pipeline.audio.decode import decode
from pipeline.errors import ConfigError, Reason, RejectedRow
from pipeline.models.invented import compression_ratio
from pipeline.models.whisper import WhisperTranscriber, check_model

AUDIO = Path(__file__).parents[1] / "parity" / "audio"


@pytest.fixture(scope="module")
def transcriber(asr: Path) -> WhisperTranscriber:
    return WhisperTranscriber(asr, device="cpu", compute_type="float32", num_threads=1)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return decode((AUDIO / "en_16k_pcm16.wav").read_bytes())


@pytest.fixture(scope="module")
def long_speech() -> np.ndarray:
    return decode((AUDIO / "en_16k_long.flac").read_bytes())[: 45 * 16_000]


class _Seen(Exception):
    pass


@pytest.mark.parametrize("clip", ["en_16k_short.wav", "en_16k_pcm16.wav", "es_16k_pcm16.wav", "full window"])
def test_whisper_hears_the_padded_waveform(transcriber, long_speech, monkeypatch, clip):
    """Fails if the frames are padded instead of the waveform: the log-mel floor is not 0.0 (the parity trap)."""
    waveform = long_speech[: 30 * 16_000] if clip == "full window" else decode((AUDIO / clip).read_bytes())
    given: list[np.ndarray] = []

    def encode(features):
        given.append(np.array(features))
        raise _Seen

    monkeypatch.setattr(transcriber._model, "model", SimpleNamespace(encode=encode, is_multilingual=True))
    with pytest.raises(_Seen):
        transcriber.transcribe(waveform, "en")
    ((heard,),) = given
    reference = WhisperFeatureExtractor(feature_size=80)(waveform, sampling_rate=16_000, return_tensors="np")
    expected = reference["input_features"][0]
    assert heard.shape == expected.shape == (80, 3000)
    assert np.abs(heard - expected).max() < 1e-4
    if clip != "full window":
        # the control: what faster-whisper itself would have given
        frames = transcriber._model.feature_extractor(waveform)[:, :3000]
        filled = np.pad(frames, ((0, 0), (0, 3000 - frames.shape[1])))
        assert np.abs(filled - expected).max() > 0.5


def test_the_same_words_every_time(asr, transcriber, speech, long_speech):
    """Fails if a text or a figure depends on chance, on what was heard before, or on the process."""
    first = transcriber.transcribe(speech, "en")
    transcriber.transcribe(long_speech, "es")
    again = WhisperTranscriber(asr, device="cpu", compute_type="float32", num_threads=1)
    assert first == transcriber.transcribe(speech, "en") == again.transcribe(speech, "en")
    assert transcriber.transcribe(long_speech, "en") == again.transcribe(long_speech, "en")


def test_what_is_kept(transcriber, speech):
    """Fails if a text comes without its figures, or they are out of their range."""
    found = transcriber.transcribe(speech, "en")
    assert found.text and found.text == found.text.strip() and "<|" not in found.text
    assert found.language == "en"
    assert found.avg_logprob < 0 and 0 <= found.no_speech_prob <= 1
    assert found.compression_ratio == pytest.approx(compression_ratio(found.text))


def test_the_language_is_heard_where_none_is_given(transcriber, speech):
    """Fails if detection gives a token instead of a code, or the text is not that of the detected language."""
    found = transcriber.transcribe(speech, None)
    assert found.language in {"en", "es", "fr", "de"}
    assert found.language == max(found.language_probs, key=found.language_probs.__getitem__)
    assert replace(found, language_probs={}) == transcriber.transcribe(speech, found.language)


@pytest.mark.parametrize("clip", ["short", "long"])
def test_a_language_the_model_does_not_know(transcriber, speech, long_speech, clip):
    """Fails if an unknown language is transcribed as another, or rejected without its reason."""
    with pytest.raises(RejectedRow) as caught:
        transcriber.transcribe(speech if clip == "short" else long_speech, "yy")
    assert caught.value.reason == Reason.UNSUPPORTED_LANGUAGE and "'yy'" in caught.value.detail


def test_a_recording_past_the_window(transcriber, long_speech, monkeypatch):
    """Fails if a recording that was not cut is lost, heard only to 30 s, or comes without language and figures."""
    heard: list[int] = []
    real = transcriber._model.transcribe
    monkeypatch.setattr(transcriber._model, "transcribe", lambda w, **how: heard.append(len(w)) or real(w, **how))
    found = transcriber.transcribe(long_speech, "en")
    assert found.text and found.language == "en" and found.avg_logprob < 0 and found.compression_ratio
    assert transcriber.transcribe(long_speech, None).language in {"en", "es", "fr", "de"}
    transcriber.transcribe(long_speech[: 30 * 16_000], "en")
    assert heard == [len(long_speech)] * 2


def test_check_model(asr):
    """Fails if a usable model is refused."""
    for language in ("en", "es"):
        check_model(asr, language)


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_model_with_a_file_missing_is_refused_by_name(tmp_path, asr, missing):
    """Fails if a half-copied model is found only on a worker."""
    shutil.copytree(asr, tmp_path / "asr")
    (tmp_path / "asr" / missing).unlink()
    with pytest.raises(ConfigError, match=missing.partition(".")[0]):
        check_model(tmp_path / "asr", "en")


def test_a_language_the_model_was_not_made_for(asr):
    """Fails if a run starts whose every utterance would be rejected."""
    with pytest.raises(ConfigError, match="'ja'"):
        check_model(asr, "ja")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"added_tokens": null}', '{"added_tokens": [1]}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path, asr, content):
    """Fails if a damaged tokenizer ends in a traceback."""
    shutil.copytree(asr, tmp_path / "asr")
    (tmp_path / "asr" / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        check_model(tmp_path / "asr", "en")

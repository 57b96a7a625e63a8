"""Transcription across recordings: a row is what it is alone, in whatever batch. The small Whisper knows these voices' words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.config.settings import AsrWindow
from pipeline.errors import Reason, Reject
from pipeline.models.encoder import Encoder
from pipeline.models.transcription import Transcript
from pipeline.models.whisper import WhisperTranscriber
from tests.support.corpus import ROOT

HELDOUT = ROOT / "demo" / "heldout"
_ALL = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
_BY_LANGUAGE = [
    [row for row in _ALL if row["heldout"] == "sentences" and row["language"] == x][:7] for x in ("en", "es")
]
ROWS = [row for pair in zip(*_BY_LANGUAGE, strict=True) for row in pair]
CLIPS = [decode((HELDOUT / row["audio"]).read_bytes()) for row in ROWS]
LONG = decode((HELDOUT / "audio" / "long-en-0.opus").read_bytes())
WAVEFORMS = [
    *CLIPS[:5],
    *CLIPS[5:12],
    np.tile(LONG, 3)[: 31 * 16_000],
    *CLIPS[12:],
    LONG[: 20 * 16_000],
]
LANGUAGES = [row["language"] for row in ROWS]
LANGUAGES = [*LANGUAGES[:12], "en", *LANGUAGES[12:], "en"]
LANGUAGES = [None if row % 3 == 1 else language for row, language in enumerate(LANGUAGES)]
"""English and Spanish, one row in three to be detected; 2 to 8 s, one of 31 s."""
NEAR = 1e-5


class Altered:
    """The real model, with other methods in the place of some."""

    def __init__(self, model: object, **methods: object) -> None:
        self._model = model
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def small(model: Any, rows: int, said: str) -> tuple[Altered, list[int]]:
    """A model with memory for so many rows only, and the sizes of the batches that it is asked for."""
    sizes = []

    def encode(features, **how):
        sizes.append(features.shape[0])
        if features.shape[0] > rows:
            raise RuntimeError(said)
        return model.encode(features, **how)

    return Altered(model, encode=encode), sizes


def transcriber_of(
    asr: Path, beam_size: int = 1, max_batch: int | None = None, window: AsrWindow = "full"
) -> WhisperTranscriber:
    return WhisperTranscriber(
        asr,
        device="cpu",
        compute_type="float32",
        num_threads=1,
        beam_size=beam_size,
        max_batch=max_batch,
        window=window,
    )


@pytest.fixture(scope="module", params=[1, 5], ids=["greedy", "beam of 5"])
def alone(request, asr) -> tuple[int, list[Transcript]]:
    """Beam size, and what each row is alone."""
    transcriber = transcriber_of(asr, request.param)
    return request.param, [transcriber.transcribe(*each) for each in zip(WAVEFORMS, LANGUAGES, strict=True)]


def differing(found: list[Transcript | Reject], expected: list[Transcript]) -> list[int]:
    """Rows with another text or language, or figures that are not near."""
    rows = []
    for row, (one, two) in enumerate(zip(found, expected, strict=True)):
        figures = [(t.avg_logprob, t.no_speech_prob, t.compression_ratio) for t in (one, two)]
        near = all(a == b or (None not in (a, b) and abs(a - b) <= NEAR) for a, b in zip(*figures, strict=True))
        if (one.text, one.language) != (two.text, two.language) or not near:
            rows.append(row)
    return rows


@pytest.mark.parametrize("beam_size", [1, 5])
def test_a_row_in_a_short_window_is_what_it_is_alone(asr, beam_size):
    """Fails if the neighbours of a row set the length of its short window or its silence, in whatever order."""
    transcriber = transcriber_of(asr, beam_size, 1, window="short")
    expected = [transcriber.transcribe(*each) for each in zip(WAVEFORMS, LANGUAGES, strict=True)]
    assert len({transcript.text for transcript in expected}) > 14
    order = np.random.default_rng(beam_size).permutation(len(WAVEFORMS))
    for max_batch in (3, 16):
        batched = transcriber_of(asr, beam_size, max_batch, window="short")
        transcripts = batched.transcribe_many([WAVEFORMS[i] for i in order], [LANGUAGES[i] for i in order])
        assert differing(transcripts, [expected[i] for i in order]) == []
        assert batched.take_figures().batches < len(WAVEFORMS) - 1, "some rows must share a batch"


def test_short_windows_pad_less_and_give_the_same_words(asr):
    """Fails if a short window is as long as a full one, or the decoder repeats itself after the speech."""
    full, short = (transcriber_of(asr, window=window) for window in ("full", "short"))
    expected, transcripts = (each.transcribe_many(CLIPS, [row["language"] for row in ROWS]) for each in (full, short))
    assert sum(a.text == b.text for a, b in zip(transcripts, expected, strict=True)) >= len(CLIPS) - 1
    assert short.take_figures().padded < full.take_figures().padded / 4


def test_a_doubtful_text_is_transcribed_again_in_a_full_window(asr, monkeypatch):
    """Fails if a text that repeats itself stays as a short window gave it, or one good text pays for another's window."""
    rows = CLIPS[:6]
    full, short = (transcriber_of(asr, window=window) for window in ("full", "short"))
    expected = full.transcribe_many(rows, ["en"] * 6)
    good = short.transcribe_many(rows, ["en"] * 6)
    short.take_figures()
    bad = good[2].text
    monkeypatch.setattr("pipeline.models.whisper.is_doubtful", lambda text, _: text == bad)
    transcripts = short.transcribe_many(rows, ["en"] * 6)
    assert sum(each.text == bad for each in good) == 1
    assert transcripts[:2] == good[:2] and transcripts[3:] == good[3:] and good[2] != expected[2] == transcripts[2]
    assert short.take_figures().batches == len(rows) + 1


@pytest.mark.parametrize("max_batch", [2, 5, 16])
def test_a_row_is_what_it_is_alone(asr, alone, max_batch):
    """Fails if a row takes text, language, prompt or figures of another, or batches change what is heard."""
    beam_size, expected = alone
    assert len({transcript.text for transcript in expected}) > 14, "the model was to hear what is said"
    assert {transcript.language for transcript in expected} == {"en", "es"}
    assert differing(transcriber_of(asr, beam_size, max_batch).transcribe_many(WAVEFORMS, LANGUAGES), expected) == []


@pytest.mark.parametrize("alone", [1], indirect=True, ids=["greedy"])
@pytest.mark.parametrize("mistake", ["features of the neighbour", "prompt of another language", "detected for another"])
def test_mistakes_of_a_batch_are_seen(asr, alone, monkeypatch, mistake):
    """The control: a batch that is put together wrongly must not pass for the rows alone."""
    beam_size, expected = alone
    transcriber = transcriber_of(asr, beam_size, 16)
    encoder, tokenizer = transcriber._encode, transcriber._tokenizer
    encode = Encoder.__call__
    if mistake == "features of the neighbour":
        monkeypatch.setattr(Encoder, "__call__", lambda _, waveforms: encode(encoder, [*waveforms[1:], waveforms[0]]))
    elif mistake == "prompt of another language":
        monkeypatch.setattr(transcriber, "_tokenizer", lambda language: tokenizer({"en": "es", "es": "en"}[language]))
    else:
        model = transcriber._model.model
        reversing = Altered(model, detect_language=lambda encoded: model.detect_language(encoded)[::-1])
        monkeypatch.setattr(transcriber._model, "model", reversing)
    wrong = differing(transcriber.transcribe_many(WAVEFORMS, LANGUAGES), expected)
    assert len(wrong) >= (2 if mistake == "detected for another" else 10)


def test_rows_come_back_in_the_order_they_were_given(asr):
    """Fails if rows come back in the order of their batches."""
    transcriber, order = transcriber_of(asr, max_batch=5), np.random.default_rng(3).permutation(len(WAVEFORMS))
    expected = transcriber.transcribe_many(WAVEFORMS, LANGUAGES)
    found = transcriber.transcribe_many([WAVEFORMS[i] for i in order], [LANGUAGES[i] for i in order])
    assert differing(found, [expected[i] for i in order]) == []
    assert transcriber.transcribe_many([], []) == []


def test_a_language_nobody_knows_costs_its_row_alone(asr):
    """Fails if one unknown language takes the batch down, or is decoded as another."""
    found = transcriber_of(asr, max_batch=4).transcribe_many(CLIPS[:3], ["en", "yy", "en"])
    assert isinstance(found[1], Reject) and found[1].reason == Reason.UNSUPPORTED_LANGUAGE
    expected = transcriber_of(asr).transcribe_many([CLIPS[0], CLIPS[2]], ["en", "en"])
    assert differing([found[0], found[2]], expected) == []


SHORTAGE = "CUDA failed with error out of memory"


def test_a_batch_that_finds_no_memory_is_halved_for_good(asr, monkeypatch):
    """Fails if a shortage costs a row that fits alone, changes a text, or has to be found out again by every shard."""
    transcriber = transcriber_of(asr, max_batch=8)
    expected = transcriber.transcribe_many(WAVEFORMS, LANGUAGES)
    model, sizes = small(transcriber._model.model, 3, SHORTAGE)
    monkeypatch.setattr(transcriber._model, "model", model)
    assert differing(transcriber.transcribe_many(WAVEFORMS, LANGUAGES), expected) == []
    assert [size for size in sizes if size > 1][:3] == [8, 4, 2]
    sizes.clear()
    transcriber.transcribe_many(CLIPS, [None] * len(CLIPS))
    assert sizes == [2] * (len(CLIPS) // 2)


def test_a_row_that_finds_no_memory_alone_says_so(asr, monkeypatch):
    """Fails if a shortage that halving cannot help ends in a loop, or another failure is taken for a shortage."""
    transcriber = transcriber_of(asr, max_batch=8)
    model = transcriber._model.model
    monkeypatch.setattr(transcriber._model, "model", small(model, 0, SHORTAGE)[0])
    with pytest.raises(MemoryError, match="out of memory"):
        transcriber.transcribe_many(CLIPS[:3], ["en"] * 3)
    monkeypatch.setattr(transcriber._model, "model", small(model, 0, "the shapes differ")[0])
    with pytest.raises(RuntimeError, match="the shapes differ"):
        transcriber.transcribe_many(CLIPS[:3], ["en"] * 3)

"""Times of transcribed words: against speech whose place is known, alone and in batches, in both windows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline import SAMPLING_RATE
from pipeline.config.settings import AsrWindow
from pipeline.models.judgement import judge
from pipeline.models.transcription import Transcript
from pipeline.models.whisper import WhisperTranscriber
from pipeline.models.words import Word, _cut_to_speech, spelling, without
from pipeline.models.words import align as _align
from pipeline.schema import AsrFlag
from tests.models.test_whisper_batch import CLIPS, ROWS

LANGUAGES = [row["language"] for row in ROWS]
STARTS_S = {
    "sentences-005": (0.1, 0.42, 0.74, 0.92, 1.08, 1.46, 1.58, 1.7),
    "sentences-000": (0.1, 0.49, 1.04, 1.26, 1.71, 2.05, 2.12, 2.72, 2.87),
    "sentences-007": (0.1, 0.63, 0.87, 1.46, 1.71, 2.02, 2.51, 2.84, 3.08, 3.74),
    "sentences-001": (0.1, 0.36, 0.98, 1.39, 1.9, 2.34, 2.63, 3.24, 3.53, 3.8),
    "sentences-009": (0.1, 0.29, 0.46, 0.65, 0.85, 1.36, 1.52, 1.84, 1.95, 2.06),
    "sentences-016": (0.1, 0.28, 0.42, 0.62, 0.81, 1.32, 1.52, 1.62, 1.73),
}
"""Where each word of some held-out sentences begins, by espeak-ng's own events when they were made."""


def transcriber_of(asr: Path, window: AsrWindow = "short", max_batch: int | None = None) -> WhisperTranscriber:
    options = {"device": "cpu", "compute_type": "float32", "num_threads": 1, "words": True}
    return WhisperTranscriber(asr, window=window, max_batch=max_batch, **options)


@pytest.mark.parametrize("window", ["full", "short"])
def test_words_are_where_they_are_spoken(asr, window):
    """Fails if times are of other frames or in another unit, or the median error is over 0.1 s."""
    transcriber, errors = transcriber_of(asr, window), []
    for row, clip in zip(ROWS, CLIPS, strict=True):
        transcript = transcriber.transcribe(clip, row["language"])
        assert transcript.words is not None and [word.word for word in transcript.words] == transcript.text.split()
        starts = [word.start_s for word in transcript.words]
        assert starts == sorted(starts) and all(w.start_s <= w.end_s for w in transcript.words)
        assert all(0 < word.probability <= 1 for word in transcript.words)
        if row["id"] in STARTS_S and transcript.text == row["reference"]:
            errors += np.abs(np.subtract(starts, STARTS_S[row["id"]])).tolist()
    assert len(errors) > 40 and np.median(errors) < 0.1 and np.quantile(errors, 0.9) < 0.25, np.sort(errors)


def test_a_word_does_not_take_the_pause_before_it():
    """Fails if silence counts to a word, or a word in which no speech is found loses its times."""
    speech = np.array([False] * 10 + [True] * 5 + [False] * 10 + [True] * 10)  # frames of 32 ms
    assert _cut_to_speech(speech, 0.0, 0.6) == pytest.approx((0.32, 0.48))
    assert _cut_to_speech(speech, 0.4, 0.46) == (0.4, 0.46)
    assert _cut_to_speech(speech, 0.5, 0.78) == (0.5, 0.78)
    assert _cut_to_speech(speech, 0.5, 5.0) == pytest.approx((0.8, 1.12))


def test_words_are_the_same_in_a_batch(asr):
    """Fails if a row of a mixed batch is aligned with another's audio, prompt or length."""
    expected = [transcriber_of(asr).transcribe(*each) for each in zip(CLIPS, LANGUAGES, strict=True)]
    batched = transcriber_of(asr, max_batch=16).transcribe_many(CLIPS, LANGUAGES)
    assert len({len(each.words or ()) for each in expected}) > 2
    for one, two in zip(batched, expected, strict=True):
        assert isinstance(one, Transcript) and one.words is not None and two.words is not None
        assert [word[:3] for word in one.words] == [word[:3] for word in two.words]
        assert [w.probability for w in one.words] == pytest.approx([w.probability for w in two.words], abs=1e-4)


def test_words_of_a_long_recording(asr):
    """Fails if the words of an uncut recording are those of a window, or their times begin anew in each."""
    long = np.concatenate([CLIPS[n] for n in (0, 2, 4, 6, 8, 10, 12) * 2])[: 33 * SAMPLING_RATE]
    transcript = transcriber_of(asr).transcribe(long, "en")
    assert transcript.words and transcript.words[-1].end_s > 25
    assert spelling(transcript.text, transcript.words) == transcript.words


def test_a_text_that_cannot_be_aligned_has_no_words(asr, monkeypatch):
    """Fails if a text that fills the decoder is an error of its batch, or has times of other words."""
    transcriber = transcriber_of(asr)
    whole = transcriber.transcribe(CLIPS[0], "en")
    for room, expected in ((5, whole.words), (4, None)):
        fewer = partial(_align, max_length=len(whole.text.split()) + room)
        monkeypatch.setattr("pipeline.models.whisper.align", lambda *given, fewer=fewer, **_: fewer(*given))
        assert transcriber.transcribe(CLIPS[0], "en") == replace(whole, words=expected)


def words(text: str) -> tuple[Word, ...]:
    return tuple(Word(each, n, n + 1, 0.5) for n, each in enumerate(text.split()))


@pytest.mark.parametrize(
    ("text", "kept", "numbers"),
    [
        ("And then " + "I'm sorry, " * 30 + "bye.", "And then I'm sorry, bye.", [0, 1, 2, 3, 62]),
        ("no " * 219 + "no.", "no.", [0]),
        ("no, " * 219 + "no.", "no.", [0]),
    ],
)
def test_a_loop_is_cut_from_the_words_too(text, kept, numbers):
    """Fails if words that were cut from the text keep their times, or a word that stays gets another's."""
    given = Transcript(text.strip(), "en", -0.2, 0.1, 9.0, words=words(text))
    judged, flag = judge(given, duration_s=10, speech_s=10)
    assert flag is AsrFlag.LOOP and judged.text == kept and judged.words is not None
    assert [word.word for word in judged.words] == kept.split()
    assert [int(word.start_s) for word in judged.words] == numbers


def test_a_text_that_is_emptied_has_no_words():
    """Fails if the words of a text that nobody spoke stay in the output."""
    judged, _ = judge(Transcript("you", "en", -0.9, 0.7, 1.0, words=words("you")), duration_s=4, speech_s=0)
    assert (judged.text, judged.words) == ("", ())


def test_a_word_that_a_cut_divides():
    """Fails if the end of a word after a cut is lost, or counted as a word."""
    whole = (Word("no-no-no-no-no-no!", 1, 2, 0.5), Word("Stop.", 3, 4, 0.5))
    assert without(whole, "no-no-no-no-no-no! Stop.", 2, 17) == (Word("no!", 1, 2, 0.5), whole[1])
    assert without(whole, "no-no-no-no-no-no! Stop.", 18, 19) == whole


def test_words_that_do_not_spell_the_text_are_dropped():
    """Fails if a broken character makes words that contradict the text."""
    assert spelling("a b", words("a b")) == words("a b")
    assert spelling("a \ufffdb", words("a b")) is None

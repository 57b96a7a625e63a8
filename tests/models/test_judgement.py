"""Rules against invented words: which texts are emptied, cut or flagged."""

from __future__ import annotations

import pytest

from pipeline.models.invented import compression_ratio, is_doubtful, repeated_words, without_repetition
from pipeline.models.judgement import flag_of, judge, judge_as_whisper
from pipeline.models.transcription import Transcript
from pipeline.schema import AsrFlag

KIDS = "Kids are talking by the door."


def transcript(text: str = KIDS, logprob: float = -0.2, no_speech: float = 0.1) -> Transcript:
    return Transcript(text, "en", logprob, no_speech, compression_ratio(text))


@pytest.mark.parametrize(
    ("no_speech", "logprob", "kept"), [(0.7, -1.1, False), (0.7, -0.9, True), (0.5, -3.0, True), (0.61, -1.01, False)]
)
def test_whispers_own_rule(no_speech, logprob, kept):
    """Fails if a text is dropped on one figure alone, or kept against both."""
    given = transcript(logprob=logprob, no_speech=no_speech)
    judged = judge_as_whisper(given, duration_s=4.0)
    assert (judged.text, judged.compression_ratio) == ((KIDS, given.compression_ratio) if kept else ("", None))
    assert (judged.avg_logprob, judged.no_speech_prob) == (logprob, no_speech)
    assert judge_as_whisper(given, duration_s=31.0) == given, "faster-whisper has judged its windows"


@pytest.mark.parametrize(
    ("given", "duration_s", "speech_s", "flag"),
    [
        (transcript(), 4.0, 2.0, AsrFlag.NONE),
        (transcript(), 4.0, 0.1, AsrFlag.NONE),  # a shout has little that looks like speech
        (transcript("you", -0.8), 4.0, 0.3, AsrFlag.SILENCE),
        (transcript("you", -0.8), 4.0, 1.0, AsrFlag.NONE),
        (transcript(), 4.0, 0.0, AsrFlag.SILENCE),
        (transcript("Thank you.", -1.2, 0.7), 4.0, 3.0, AsrFlag.SILENCE),
        (transcript("Thank you.", -1.2, 0.5), 4.0, 3.0, AsrFlag.LOW_CONFIDENCE),
    ],
)
def test_silence_and_low_confidence(given, duration_s, speech_s, flag):
    """Fails if a sure text of little speech is emptied, an unsure one without speech is kept, or a flag is another's."""
    judged, actual = judge(given, duration_s=duration_s, speech_s=speech_s)
    assert actual == flag
    assert judged.text == ("" if flag is AsrFlag.SILENCE else given.text)
    assert judged.avg_logprob == given.avg_logprob


@pytest.mark.parametrize(
    ("text", "duration_s", "kept"),
    [
        (f"{KIDS} {KIDS}", 2.5, KIDS),  # twelve words in two and a half seconds
        ("And then " + "I'm sorry, " * 30 + "bye.", 12.0, "And then I'm sorry bye."),
        ("no " * 220, 30.0, "no"),
        ("ありがとう" * 40, 8.0, ""),  # a language without blanks
    ],
)
def test_a_loop_is_cut_or_emptied(text, duration_s, kept):
    """Fails if a text that repeats itself stays, loses what is not repeated, or keeps the ratio of what was cut."""
    judged, flag = judge(transcript(text.strip()), duration_s=duration_s, speech_s=duration_s)
    assert (judged.text.replace(",", ""), flag) == (kept, AsrFlag.LOOP)
    assert judged.compression_ratio == (pytest.approx(compression_ratio(judged.text)) if kept else None)


def test_who_repeats_a_sentence_is_not_cut():
    """Fails if a sentence that is said twice or six times, at the pace of speech, loses what repeats."""
    for times in (2, 6):
        given = transcript(" ".join([KIDS] * times))
        assert judge(given, duration_s=3.5 * times, speech_s=1.5 * times) == (given, AsrFlag.NONE)
    assert given.compression_ratio is not None and given.compression_ratio > 2.4


def test_flags_of_texts_that_stay():
    """Fails if --segmentation none flags otherwise than the rules would, or an empty text has no flag."""
    assert flag_of(transcript(""), duration_s=4.0) is AsrFlag.SILENCE
    assert flag_of(transcript("no " * 200), duration_s=4.0) is AsrFlag.LOOP
    assert flag_of(transcript(logprob=-1.5), duration_s=4.0) is AsrFlag.LOW_CONFIDENCE
    assert flag_of(transcript(), duration_s=4.0) is AsrFlag.NONE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (KIDS, 0),
        ("Yes, yes, yes!", 2),
        ("no no no no no", 4),
        ("Dogs are sitting by the door. Dogs are sitting by the door.", 6),
        ("We saw that it is, and that it is, and that it is, then left", 4),
        ("the end of the road at the end of the day", 0),
    ],
)
def test_words_that_repeat(text, words):
    """Fails if a loop is taken for speech, or speech that repeats a word later for a loop."""
    assert repeated_words(text) == words
    assert is_doubtful(text, -0.1) is (words >= 4)
    assert (without_repetition(text) == text) is (words < 4)


def test_compression_ratio():
    """Fails if a text that repeats itself has an ordinary ratio, or an empty one divides by zero."""
    assert compression_ratio("") is None
    assert compression_ratio("thank you " * 50) > 2.4 > compression_ratio(KIDS)

"""Rules against words that Whisper invents for silence, noise and music.

For datasets from schema version 3 (`judge`), of utterances of up to 30 s that are not transcribed with
`--segmentation none`, the first that applies:

- silence: voice activity detection finds no speech; or Whisper's own rule applies; or less than `_SPEECH_SHARE` of the
  clip may be speech and the average log-probability is under `_UNSURE_LOGPROB`. The text is empty.
- loop: four words or more repeat at once, or the compression ratio is over 2.4, and the text has more characters for the
  length of the clip than anybody speaks. Repetitions are cut to their first occurrence; the text is empty if the ratio
  is still over 2.4.
- low_confidence: the average log-probability is under -1.0. The text stays.

Earlier datasets, and `--segmentation none`, have Whisper's own rule alone (`judge_as_whisper`). The figures that Whisper's
rule uses are those of full windows: with an average log-probability under -1.0 no text of a short window is kept.
docs/performance.md, invented_words, has misses and false alarms.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.models.encoder import WINDOW_S
from pipeline.models.invented import (
    REPEATED_WORDS,
    REPETITIVE,
    compression_ratio,
    repeated_words,
    repetition,
)
from pipeline.models.transcription import Transcript
from pipeline.models.words import without
from pipeline.schema import LOW_LOGPROB, AsrFlag

NO_SPEECH_PROB = 0.6
"""Threshold of Whisper's voice activity rule, with `LOW_LOGPROB`. Source: Radford et al. 2022, section 4.5."""
_SPEECH_SHARE, _UNSURE_LOGPROB = 0.2, -0.7
"""Chosen on 131 sounds without speech and 450 clips of speech; the next values on either side give nearly the same."""
_FASTEST_CHARACTERS_PER_S = 20.0
"""Characters per second of a clip above which a repetition is a loop. Sentences that were said twice or more had up to 13,
loops from 31."""


def judge_as_whisper(transcript: Transcript, *, duration_s: float) -> Transcript:
    """Empty the text if Whisper's rule says that nobody speaks. Past 30 s, faster-whisper has applied it by window."""
    return _emptied(transcript) if duration_s <= WINDOW_S and _is_silent(transcript) else transcript


def judge(transcript: Transcript, *, duration_s: float, speech_s: float) -> tuple[Transcript, AsrFlag]:
    """Apply the rules to the transcript of an utterance of at most 30 s.

    Args:
        speech_s: seconds that may be speech, as `pipeline.audio.segmentation.speech_seconds` counts them.
    """
    unsure = (transcript.avg_logprob or 0.0) < _UNSURE_LOGPROB
    if not speech_s or _is_silent(transcript) or (unsure and speech_s < _SPEECH_SHARE * duration_s):
        return _emptied(transcript), AsrFlag.SILENCE
    flag = flag_of(transcript, duration_s=duration_s)
    if flag is not AsrFlag.LOOP:
        return transcript, flag
    cut = _without_repetition(transcript)
    return cut if (cut.compression_ratio or 0.0) <= REPETITIVE else _emptied(transcript), flag


def flag_of(transcript: Transcript, *, duration_s: float) -> AsrFlag:
    """Return the flag of a transcript whose text stays as it is."""
    text = transcript.text
    if not text:
        return AsrFlag.SILENCE
    repeats = repeated_words(text) >= REPEATED_WORDS or (compression_ratio(text) or 0.0) > REPETITIVE
    if repeats and len(text) > _FASTEST_CHARACTERS_PER_S * duration_s:
        return AsrFlag.LOOP
    return AsrFlag.LOW_CONFIDENCE if (transcript.avg_logprob or 0.0) < LOW_LOGPROB else AsrFlag.NONE


def _is_silent(transcript: Transcript) -> bool:
    unlikely = (transcript.avg_logprob or 0.0) < LOW_LOGPROB
    return unlikely and (transcript.no_speech_prob or 0.0) > NO_SPEECH_PROB


def _without_repetition(transcript: Transcript) -> Transcript:
    text, words = transcript.text, transcript.words
    while span := repetition(text):
        words = without(words, text, *span) if words else words
        text = text[: span[0]] + text[span[1] :]
    return replace(transcript, text=text, words=words, compression_ratio=compression_ratio(text))


def _emptied(transcript: Transcript) -> Transcript:
    return replace(transcript, text="", words=(), compression_ratio=None)

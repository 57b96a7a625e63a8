"""Times of the words of a transcript, from the decoder's attention to the encoder's output.

CTranslate2 aligns a text's tokens with the frames of the clip by dynamic time warping over the model's alignment heads, and
faster-whisper joins tokens to words. The alignment gives a pause to the word that follows it, so a word is cut to the speech
that it contains. docs/performance.md, words, has errors and cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.segmentation import SPEECH_FRAME_S, speech_frames
from pipeline.models.encoder import Encoder

_FRAMES_PER_S = 100
"""Whisper's log-mel frames per second. Source: Radford et al. 2022, section 2.2."""
_BEFORE, _AFTER = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the following and to the preceding word: faster-whisper's defaults."""
_OTHER_TOKENS = 2
"""Tokens beside prompt and text in an alignment: no timestamps, end."""


class Word(NamedTuple):
    """One transcribed word with its punctuation; times are seconds from the start of the utterance."""

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Spoken:
    """One decoded utterance.

    Attributes:
        waveform: float32 [num_samples] at 16 kHz.
        text: its text.
        tokens: the text's tokens.
        tokenizer: faster-whisper's for its language.
    """

    waveform: NDArray[np.float32]
    text: str
    tokens: list[int]
    tokenizer: Any


def align(
    whisper: Any,  # noqa: ANN401 - faster-whisper ships no types
    encoder: Encoder,
    encoded: Any,  # noqa: ANN401 - as above
    batch: Sequence[Spoken],
    *,
    max_length: int,
) -> list[tuple[Word, ...] | None]:
    """Return the words of each utterance of a batch.

    Args:
        whisper: faster-whisper's `WhisperModel`.
        encoded: the encoder's output for the batch.
        max_length: positions of the decoder.
    Returns: None for a text with too many tokens.
    """
    found: list[tuple[Word, ...] | None] = [None if spoken.text else () for spoken in batch]
    by_language: dict[str, list[int]] = {}
    for row, spoken in enumerate(batch):
        prompt = len(spoken.tokenizer.sot_sequence) + _OTHER_TOKENS
        if spoken.text and prompt + len(spoken.tokens) <= max_length:
            by_language.setdefault(spoken.tokenizer.language_code, []).append(row)
    for rows in by_language.values():  # an alignment has one prompt
        some = [batch[row] for row in rows]
        alignments = whisper.find_alignment(
            some[0].tokenizer,
            [spoken.tokens for spoken in some],
            encoder.rows(encoded, rows),
            [math.ceil(len(spoken.waveform) / SAMPLING_RATE * _FRAMES_PER_S) for spoken in some],
        )
        for row, spoken, alignment in zip(rows, some, alignments, strict=True):
            found[row] = _words(spoken, alignment)
    return found


def _words(spoken: Spoken, alignment: list[dict[str, Any]]) -> tuple[Word, ...] | None:
    from faster_whisper.transcribe import merge_punctuations

    merge_punctuations(alignment, _BEFORE, _AFTER)
    frames = speech_frames(spoken.waveform)
    duration_s = len(spoken.waveform) / SAMPLING_RATE
    return spelling(
        spoken.text,
        [
            Word(
                each["word"].strip(),
                *_cut_to_speech(frames, float(each["start"]), min(float(each["end"]), duration_s)),
                float(each["probability"]),
            )
            for each in alignment
        ],
    )


def spelling(text: str, words: Sequence[Word]) -> tuple[Word, ...] | None:
    """Return the words that are not empty; None if together they do not spell the text, blanks aside."""
    kept = tuple(word for word in words if word.word)
    return kept if "".join("".join(word.word for word in kept).split()) == "".join(text.split()) else None


def _cut_to_speech(frames: NDArray[np.bool_], start_s: float, end_s: float) -> tuple[float, float]:
    """Cut silence from both ends of a word; a word without a frame of speech stays as it is."""
    first, last = int(start_s / SPEECH_FRAME_S), math.ceil(end_s / SPEECH_FRAME_S)
    speech = first + np.flatnonzero(frames[first:last])
    if not len(speech):
        return start_s, end_s
    return (
        max(start_s, float(speech[0] * SPEECH_FRAME_S)),
        min(end_s, float((speech[-1] + 1) * SPEECH_FRAME_S)),
    )


def without(words: Sequence[Word], text: str, start: int, end: int) -> tuple[Word, ...]:
    """Return the words of a text from which the characters [start, end) are removed; punctuation joins the word before it."""
    kept: list[Word] = []
    position = 0
    for word in words:
        first = text.index(word.word, position)
        position = first + len(word.word)
        if position <= start or first >= end:
            kept.append(word)
            continue
        rest = word.word[end - first :] if position > end else ""
        if first < start:
            kept.append(word._replace(word=word.word[: start - first] + rest))
        elif rest and kept:
            kept[-1] = kept[-1]._replace(word=kept[-1].word + rest)
    return tuple(kept)

"""Signs of invented words: low confidence, and text that repeats itself."""

from __future__ import annotations

import re
import zlib

from pipeline.schema import LOW_LOGPROB

REPETITIVE = 2.4
"""Compression ratio above which Whisper decodes a text again, as below `LOW_LOGPROB`. Source: Radford et al. 2022, section
4.5."""
REPEATED_WORDS = 4
"""Number of repeated words that marks a loop: `yes yes yes` is speech, and a phrase said twice has two or three words."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def is_doubtful(text: str, avg_logprob: float | None) -> bool:
    """Return whether a text is one that Whisper would decode again, or repeats words."""
    ratio = compression_ratio(text) or 0.0
    return (avg_logprob or 0.0) < LOW_LOGPROB or ratio > REPETITIVE or repeated_words(text) >= REPEATED_WORDS


def repeated_words(text: str) -> int:
    """Return the length in words of the longest immediate repetition: 0 for `a b`, 2 for `a b a b`, 4 for `a b a b a b`."""
    return _longest_repetition(_WORD.findall(text.casefold()))[2]


def compression_ratio(text: str) -> float | None:
    """Return bytes over zlib bytes: above about 2.4 a text repeats itself. Source: Radford et al. 2022, section 4.5."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else None


def without_repetition(text: str) -> str:
    """Return the text with every immediate repetition of `REPEATED_WORDS` or more cut to its first occurrence."""
    while span := repetition(text):
        text = text[: span[0]] + text[span[1] :]
    return text


def repetition(text: str) -> tuple[int, int] | None:
    """Return the characters [start, end) of the longest repetition, its first occurrence excepted; None for a short one.

    They begin at the end of the first occurrence, so that what follows the last one, such as a full stop, stays.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    start, period, repeated = _longest_repetition([text[slice(*span)].casefold() for span in spans])
    if repeated < REPEATED_WORDS:
        return None
    return spans[start + period - 1][1], spans[start + period + repeated - 1][1]


def _longest_repetition(words: list[str]) -> tuple[int, int, int]:
    """Return the first word, the period and the number of repeated words of the longest immediate repetition."""
    best = (0, 1, 0)
    for period in range(1, len(words) // 2 + 1):
        run = 0
        for number, (word, earlier) in enumerate(zip(words[period:], words, strict=False)):
            run = run + 1 if word == earlier else 0
            whole = run - run % period
            if whole > best[2]:
                best = (number + 1 - run, period, whole)
    return best

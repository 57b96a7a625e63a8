"""Word error rates of Whisper's transcripts against the manifest's reference texts, computed with jiwer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import jiwer
import numpy as np
from numpy.typing import NDArray

from pipeline.analytics.evaluate.bootstrap import Bootstrap, interval
from pipeline.analytics.evaluate.labelled import Labelled
from pipeline.analytics.evaluate.results import WordDifference, WordErrors

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
ERRORS = ("substitutions", "deletions", "insertions")
Errors = Mapping[str, Mapping[str, int]]
"""Numbers of words, of each kind of error, and of utterances, by recording."""


def words(text: str) -> list[str]:
    """Split a text into normalized words: lower case, no punctuation; accents and inner apostrophes are kept.

    Numbers are not normalized: `20` differs from `twenty`.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def count_errors(labelled: Labelled, references: str) -> Errors:
    """Count words and errors of each recording that has a reference and was transcribed by Whisper alone.

    The utterances of a recording are joined in order, because references cover whole recordings.
    """
    texts: dict[str, list[tuple[int, str]]] = {}
    reference_of: dict[str, str] = {}
    given = set()
    columns = ("recording_id", "segment_index", "text", "text_source", references)
    for recording, index, text, source, reference in zip(*map(labelled.column, columns), strict=True):
        if source != "asr":
            given.add(recording)
        texts.setdefault(recording, []).append((index, text or ""))
        if reference is not None and words(str(reference)):
            reference_of[recording] = str(reference)
    kept = [recording for recording in texts if recording in reference_of and recording not in given]
    if not kept:
        return {}
    transcripts = [" ".join(words(" ".join(text for _, text in sorted(texts[recording])))) for recording in kept]
    expected = [" ".join(words(reference_of[recording])) for recording in kept]
    alignments = jiwer.process_words(expected, transcripts).alignments
    errors = {}
    for recording, reference, chunks in zip(kept, expected, alignments, strict=True):
        counts = dict.fromkeys(ERRORS, 0)
        for chunk in chunks:
            for kind, error in zip(("substitute", "delete", "insert"), ERRORS, strict=True):
                if chunk.type == kind:
                    counts[error] += max(
                        chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                    )
        errors[recording] = {"words": len(reference.split()), **counts, "utterances": len(texts[recording])}
    return errors


def error_rate(
    errors: Errors, recordings: Sequence[str], groups: NDArray[np.int64], bootstrap: Bootstrap
) -> WordErrors | None:
    """Compute the word error rate of the given utterances, with its bootstrap interval.

    Args:
        recordings: the recording of each utterance.
        groups: int64 [N] from 0 up, the resampling group of each utterance; a recording has that of its first
            utterance.
    Returns: None when no recording can be counted.
    """
    counted = _whole(errors, recordings)
    if not counted:
        return None
    totals = {name: sum(errors[recording][name] for recording in counted) for name in ("words", *ERRORS)}
    low, high = interval(_rates([errors], counted, _group_of(recordings, groups), bootstrap)[:, 0])
    rate = sum(totals[error] for error in ERRORS) / totals["words"]
    return WordErrors(recordings=len(counted), word_error_rate=rate, low=low, high=high, **totals)


def compare_rates(
    errors: Sequence[Errors],
    recordings: Sequence[Sequence[str]],
    groups: NDArray[np.int64],
    bootstrap: Bootstrap,
) -> WordDifference | None:
    """Compute the difference of the word error rates of two outputs, second minus first.

    Only recordings transcribed in both, whose references have the same number of words, are counted.

    Args:
        errors, recordings: those of the first output and of the second.
        groups: resampling groups of the first output's utterances.
    Returns: None when no recording can be counted.
    """
    both = set(_whole(errors[1], recordings[1]))
    counted = [
        name
        for name in _whole(errors[0], recordings[0])
        if name in both and errors[0][name]["words"] == errors[1][name]["words"]
    ]
    if not counted:
        return None
    first, second = (
        sum(each[name][error] for name in counted for error in ERRORS) / sum(each[name]["words"] for name in counted)
        for each in errors
    )
    rates = _rates(errors, counted, _group_of(recordings[0], groups), bootstrap)
    low, high = interval(rates[:, 1] - rates[:, 0])
    return WordDifference(
        first=first, second=second, difference=second - first, low=low, high=high, recordings=len(counted)
    )


def _whole(errors: Errors, recordings: Sequence[str]) -> list[str]:
    """Return the recordings whose utterances are all present, because a reference covers the whole recording."""
    present = Counter(recordings)
    return [name for name, count in present.items() if name in errors and errors[name]["utterances"] == count]


def _group_of(recordings: Sequence[str], groups: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(reversed(recordings), reversed(groups.tolist()), strict=True))


def _rates(
    errors: Sequence[Errors], counted: Sequence[str], group_of: Mapping[str, int], bootstrap: Bootstrap
) -> NDArray[np.float64]:
    """Compute word error rates of resamples by group, with the same draws for each output: [resamples, outputs]."""
    _, groups = np.unique([group_of[name] for name in counted], return_inverse=True)
    if not bootstrap.possible(groups):
        return np.zeros((0, len(errors)))
    columns = [[errors[0][name]["words"] for name in counted]]
    columns += [[sum(each[name][error] for error in ERRORS) for name in counted] for each in errors]
    drawn = bootstrap.sums(np.array(columns, np.float64).T, groups)
    return np.asarray(drawn[:, 1:] / drawn[:, :1])

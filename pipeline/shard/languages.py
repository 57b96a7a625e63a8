"""Decision on the language of a recording from the detections in its segments.

A short segment is unreliable: Whisper sometimes detects Welsh in two seconds of English. So a recording has one language,
the one with the most seconds of speech times probability over all its segments. Only a segment that is clearly in another
language keeps its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.plan import Plan
from pipeline.errors import Reason, Reject, Stage
from pipeline.models.transcription import Transcript
from pipeline.schema import CLEAR_PROB, OTHER_LANGUAGE

CLEAR_SPEECH_S = 5.0
"""Least speech at which a segment with `CLEAR_PROB` keeps its own language instead of its recording's."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The languages detected in one segment.

    Attributes:
        speech_s: seconds of speech; 0.0 without speech.
        probs: Whisper's probability of each language; empty without speech.
    """

    speech_s: float
    probs: Mapping[str, float]


def recording_language(segments: Iterable[Detection], allowed: Collection[str] = ()) -> str | None:
    """Return the language with the most seconds of speech times probability; None when no segment has any.

    Args:
        allowed: the languages to choose from; empty for all.
    """
    weights: dict[str, float] = {}
    for segment in segments:
        for language, prob in segment.probs.items():
            if not allowed or language in allowed:
                weights[language] = weights.get(language, 0.0) + segment.speech_s * prob
    # ties are resolved by name, so that the order of segments does not matter
    return max(sorted(weights), key=weights.__getitem__) if any(weights.values()) else None


def segment_language(segment: Detection, recording: str, allowed: Collection[str] = ()) -> str:
    """Return the segment's own language if it is clear, else its recording's."""
    if segment.speech_s < CLEAR_SPEECH_S:
        return recording
    clear = [
        language
        for language, prob in segment.probs.items()
        if prob >= CLEAR_PROB and (not allowed or language in allowed)
    ]
    return clear[0] if clear else recording


def settle_languages(plan: Plan, lines: Sequence[dict[str, Any]], transcripts: MutableMapping[int, Transcript]) -> None:
    """Set `language` and `language_prob` of each line whose language was detected, or reject its recording.

    A line in a language that no model of the plan covers gets an `emotion_null_reason`; in a dataset without that column it
    gets its recording's language.

    Args:
        lines: lines of the work table, updated in place.
        transcripts: transcripts by line number; those of rejected recordings are removed.
    """
    by_row: dict[int, list[int]] = {}
    for number in transcripts:
        if lines[number]["language"] is None:
            by_row.setdefault(lines[number]["row"], []).append(number)
    allowed = plan.settings.allowed_languages
    for numbers in by_row.values():
        segments = {number: _detection(lines[number], transcripts[number]) for number in numbers}
        language = recording_language(segments.values(), allowed)
        if language is None or not plan.knows_language(language):
            for number in numbers:
                lines[number]["reject"] = _without_model(language).document()
                del transcripts[number]
            continue
        for number, segment in segments.items():
            own = segment_language(segment, language, allowed)
            if not plan.knows_language(own):
                own, reason = (own, OTHER_LANGUAGE) if plan.settings.schema_version > 1 else (language, None)
                lines[number]["emotion_null_reason"] = reason
            lines[number].update(language=own, language_prob=segment.probs.get(own))


def _detection(line: Mapping[str, Any], transcript: Transcript) -> Detection:
    certain = {} if transcript.language is None else {transcript.language: 1.0}  # the model has only one language
    return Detection(line["speech_s"] or 0.0, transcript.language_probs or certain)


def _without_model(language: str | None) -> Reject:
    if language is None:
        detail = (
            "no speech was found, so no language could be detected; give the row a language, or set one with --language"
        )
        return Reject(Reason.NO_SPEECH, detail, Stage.TRANSCRIBE)
    detail = f"detected language {language!r} has no emotion model; name one with --emotion-model {language}=X"
    return Reject(Reason.UNSUPPORTED_LANGUAGE, detail, Stage.TRANSCRIBE)

"""Checks of the values of a part, row by row: scores, labels, embeddings and the manifest's columns."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import MAX_SEGMENT_S
from pipeline.config import primary_language
from pipeline.config.columns import OVERLAP_SHARE
from pipeline.config.further import further_results
from pipeline.dataset.plan import Plan
from pipeline.dataset.verify.invariants import Invariant
from pipeline.dataset.verify.label_scores import LabelScores
from pipeline.dataset.verify.transcripts import bad_transcripts
from pipeline.errors import ConfigError
from pipeline.manifest.python_values import plain_values
from pipeline.pins import further_names
from pipeline.redaction import without_query
from pipeline.schema import (
    ABSTAINED,
    CLEAR_PROB,
    DIMENSIONS,
    EMBEDDINGS,
    EMOTIONS,
    NO_SPEECH,
    OTHER_LANGUAGE,
    emotion_of,
)

_NEAR = 1e-5
"""Tolerance between a float32 score and a copy of it."""
_SUM_NEAR = 1e-3
"""Tolerance of the sum of a row's scores from 1: seven float32 roundings, and a margin for half-precision models."""
_RESULTS = ("label", "emotion", "confidence", "margin", "scores", "model", *EMBEDDINGS)
_RESULTS_SINCE_3 = ("label_scores", "labels", *DIMENSIONS)
_LABEL_SCORES_SINCE = 3
"""Schema version from which results follow from `label_scores`."""
_HASH = re.compile("[0-9a-f]{64}|")
Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]

_SENTENCES = {
    Invariant.RUN_ID: "rows name another run",
    Invariant.PLAN_COLUMNS: "rows hold other values of the manifest's columns than the plan, or an overlap_share beyond 0 to 1",
    Invariant.SCORES: "rows have scores that are not probabilities that add up to 1, or that do not follow from their labels",
    Invariant.CONFIDENCE: "rows have a confidence that is not the highest score, or a margin that is not its lead",
    Invariant.LABEL: "rows have a label that is unknown, belongs to another emotion or does not have the highest score, "
    "or no emotion without a reason",
    Invariant.LANGUAGE: "rows have a language_prob that is not a probability, or a model and results that contradict their "
    "emotion_null_reason: only rows with 'language' or 'no_speech' have neither",
    Invariant.TEXTS: "rows have a text other than --texts allows, here or in the plan",
    Invariant.TRANSCRIPT: "rows have an asr_flag that their text or emotion_null_reason contradicts, or words that are not those "
    "of the text or are beyond the utterance",
    Invariant.EMBEDDING: "rows have an embedding that is missing or not finite",
}


class RowFaults:
    """Counter of faulty rows, row group by row group. The tables must have the plan's schema.

    Args:
        plan: the plan of the part.
        planned: the plan's rows of the shard, with all columns.
    """

    def __init__(self, plan: Plan, planned: pa.Table) -> None:
        self._plan = plan
        self._planned = planned
        self._positions = {recording: row for row, recording in enumerate(planned["recording_id"].to_pylist())}
        self._counts: dict[Invariant, int] = {}
        self._examples: dict[Invariant, str] = {}

    def add(self, rows: pa.Table) -> None:
        """Check one row group."""
        rows = rows.combine_chunks()
        if not rows.num_rows:
            return
        labelled = ~_is_unlabelled(rows)
        scores, confidence, label = self._bad_results(rows)
        further = [self._bad_further(rows, name) for name in self._plan.settings.also]
        masks = {
            Invariant.RUN_ID: np.array([run != self._plan.plan for run in rows["run_id"].to_pylist()]),
            Invariant.PLAN_COLUMNS: self._other_values(rows),
            Invariant.SCORES: scores & labelled,
            Invariant.CONFIDENCE: confidence & labelled,
            Invariant.LABEL: label & labelled,
            Invariant.LANGUAGE: self._bad_language(rows, labelled),
            Invariant.TEXTS: self._bad_texts(rows),
            Invariant.TRANSCRIPT: bad_transcripts(rows, self._plan.settings),
            Invariant.EMBEDDING: self._bad_embeddings(rows) & labelled,
        }
        for masks_of_name in further:
            masks |= {invariant: masks[invariant] | mask for invariant, mask in masks_of_name.items()}
        for invariant, mask in masks.items():
            if mask.any():
                self._counts[invariant] = self._counts.get(invariant, 0) + int(mask.sum())
                self._examples.setdefault(invariant, rows["utterance_id"][int(mask.argmax())].as_py())

    def sentences(self) -> Iterator[tuple[Invariant, str]]:
        """Yield one sentence for each invariant that a row violates."""
        for invariant, count in self._counts.items():
            yield invariant, f"{count:,} {_SENTENCES[invariant]}, such as {self._examples[invariant]!r}"

    def _other_values(self, rows: pa.Table) -> Mask:
        """Return a mask of rows whose audio, channel or pass-through columns differ from their plan row."""
        positions = [self._positions.get(recording) for recording in rows["recording_id"].to_pylist()]
        theirs = self._planned.take(pa.array(positions, pa.int64()))  # an unknown recording takes nulls
        known = np.array([position is not None for position in positions])
        names = ["audio", "channel", *(name for name in self._plan.extra.names if name in rows.schema.names)]
        differs = np.zeros(rows.num_rows, dtype=bool)
        if self._plan.settings.turns:
            share = rows[OVERLAP_SHARE].to_numpy()
            differs |= ~_null(rows, OVERLAP_SHARE) & ~((share >= 0.0) & (share <= 1.0))
        for name in names:
            mine, planned = rows[name].combine_chunks(), theirs[name].combine_chunks()
            if name == "audio":
                planned = _shown_audio(planned, mine)
            elif (
                name == "channel" and self._plan.settings.channels != "mix"
            ):  # a row without one has utterances of each
                planned = pc.if_else(pc.less(mine, 0).fill_null(False), planned, pc.coalesce(planned, mine))
            if not mine.equals(planned):
                # compared as text, where NaN equals NaN
                pairs = zip(plain_values(mine), plain_values(planned), strict=True)
                differs |= np.array([repr(one) != repr(other) for one, other in pairs])
        return np.asarray(differs & known)

    def _bad_texts(self, rows: pa.Table) -> Mask:
        """Return a mask of rows with a text that the dataset does not keep."""
        kept, bad = self._plan.settings.texts, np.zeros(rows.num_rows, dtype=bool)
        if kept == "keep":
            return bad
        bad |= self._planned["text"].null_count < self._planned.num_rows
        bad |= [text is not None and (kept == "none" or not _HASH.fullmatch(text)) for text in rows["text"].to_pylist()]
        return bad

    def _bad_further(self, rows: pa.Table, name: str) -> dict[Invariant, Mask]:
        """Return masks of rows whose results of a further model are wrong, as those of the main model are checked."""
        results = further_results(rows, name)
        other = _is_unlabelled(results)
        scores, confidence, label = self._bad_results(results)
        tags = rows["language"].to_pylist()
        covered = np.array([name in further_names(self._plan.models, primary_language(tag)) for tag in tags])
        covered &= ~_is_unlabelled(rows)
        absent = np.stack(
            [_null(results, column) for column in ("label", "emotion", "label_scores", "model", "scores")]
        )
        language = np.where(other, covered | ~absent.all(axis=0), ~covered | _null(results, "model"))
        language |= _has_reason(results, NO_SPEECH) != _has_reason(rows, NO_SPEECH)
        found = {Invariant.SCORES: scores, Invariant.CONFIDENCE: confidence, Invariant.LABEL: label}
        return {**{invariant: mask & ~other for invariant, mask in found.items()}, Invariant.LANGUAGE: language}

    def _bad_results(self, rows: pa.Table) -> tuple[Mask, Mask, Mask]:
        """Return masks of rows with wrong scores, with a wrong confidence, and with a wrong label or emotion."""
        bound = np.float32(self._plan.settings.min_confidence or 0.0)
        abstained = rows["confidence"].to_numpy() < bound
        wrongly = rows["abstained"].to_numpy(zero_copy_only=False) != abstained
        if self._plan.settings.schema_version >= _LABEL_SCORES_SINCE:
            of_labels = LabelScores(rows, self._plan.settings.label_map)
            bad_label = of_labels.bad_label() | of_labels.bad_emotion(abstained.tolist()) | wrongly
            return of_labels.bad_scores(), of_labels.bad_confidence(), bad_label
        scores, known = _scores(rows)
        bad_label = _bad_label(rows, scores) | self._bad_abstention(rows, abstained) | wrongly
        return _bad_scores(scores, known), _bad_confidence(rows, scores), bad_label

    def _bad_abstention(self, rows: pa.Table, expected: Mask) -> Mask:
        """Return a mask of rows whose emotion is null otherwise than expected from their confidence."""
        bad = np.zeros(rows.num_rows, dtype=bool)
        bad |= _null(rows, "emotion") != expected
        if "emotion_null_reason" in rows.column_names:
            reasons = [ABSTAINED if abstained else None for abstained in expected]
            bad |= np.array(
                [one != other for one, other in zip(rows["emotion_null_reason"].to_pylist(), reasons, strict=True)]
            )
        return np.asarray(bad)

    def _bad_language(self, rows: pa.Table, labelled: Mask) -> Mask:
        """Return a mask of rows with missing or unexpected results, or with an invalid language probability."""
        if "emotion_null_reason" not in rows.column_names:
            return np.zeros(rows.num_rows, dtype=bool)
        prob = rows["language_prob"].to_numpy()
        given = ~_null(rows, "language_prob")
        bad = given & ~((prob >= 0.0) & (prob <= 1.0 + _NEAR))
        since_3 = _RESULTS_SINCE_3 if self._plan.settings.schema_version >= _LABEL_SCORES_SINCE else ()
        results = [name for name in (*_RESULTS, *since_3) if name in rows.column_names]
        absent = np.stack([_null(rows, name) for name in results])
        covered = np.array([self._plan.knows_language(primary_language(tag)) for tag in rows["language"].to_pylist()])
        silent = _has_reason(rows, NO_SPEECH)
        elsewhere = ~covered & (prob >= CLEAR_PROB - _NEAR)
        unlabelled_well = absent.all(axis=0) & np.where(silent, self._may_be_silent(rows), elsewhere)
        unlabelled_well &= ~rows["abstained"].to_numpy(zero_copy_only=False)
        return np.asarray(bad | np.where(labelled, _null(rows, "model"), ~unlabelled_well))

    def _may_be_silent(self, rows: pa.Table) -> Mask:
        """Return a mask of rows that may have no results because nobody speaks: without words, and of up to 30 s."""
        settings = self._plan.settings
        if settings.schema_version < _LABEL_SCORES_SINCE or settings.segmentation == "none":
            return np.zeros(rows.num_rows, dtype=bool)
        short = rows["duration_s"].to_numpy() <= MAX_SEGMENT_S + _NEAR
        columns = zip(rows["text"].to_pylist(), rows["text_source"].to_pylist(), strict=True)
        wordless = np.array([not text and source != "manifest" for text, source in columns])
        return np.asarray(wordless & short)

    def _bad_embeddings(self, rows: pa.Table) -> Mask:
        bad = np.zeros(rows.num_rows, dtype=bool)
        for name, width in self._plan.embedding_widths.items():
            column = rows[name].combine_chunks()
            there = np.asarray(column.is_valid())
            values = np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
            bad |= ~there
            bad[there] |= ~np.isfinite(values).all(axis=1)
        return bad


def _null(rows: pa.Table, column: str) -> Mask:
    return np.asarray(rows[column].combine_chunks().is_null())


def _is_unlabelled(rows: pa.Table) -> Mask:
    """Return a mask of rows marked as having no results, for their language or because nobody speaks."""
    if "emotion_null_reason" not in rows.column_names:
        return np.zeros(rows.num_rows, dtype=bool)
    return _has_reason(rows, OTHER_LANGUAGE) | _has_reason(rows, NO_SPEECH)


def _has_reason(rows: pa.Table, reason: str) -> Mask:
    return np.array([each == reason for each in rows["emotion_null_reason"].to_pylist()])


def _shown_audio(planned: pa.Array, mine: pa.Array) -> pa.Array:
    """Return the planned URIs in the form that utterances have.

    In outputs of earlier versions they end at any `?`, also in object keys.
    """

    def shown(uri: str, value: str | None) -> str:
        before = uri.partition("?")[0] if "://" in uri else uri
        return before if value == before else without_query(uri)

    pairs = zip(planned.to_pylist(), mine.to_pylist(), strict=True)
    return pa.array([uri and shown(uri, value) for uri, value in pairs], pa.string())


def _scores(rows: pa.Table) -> tuple[Scores, Mask]:
    """Return the scores, -1 for an emotion unknown to the model, and a mask of known ones; both [rows, emotions]."""
    column = rows["scores"].combine_chunks()
    fields = [column.field(number) for number in range(len(EMOTIONS))]
    known = np.stack([np.asarray(field.is_valid()) for field in fields], axis=1)
    scores = np.stack([field.to_numpy(zero_copy_only=False).astype(np.float64) for field in fields], axis=1)
    return np.where(known, scores, -1.0), known


def _bad_scores(scores: Scores, known: Mask) -> Mask:
    out_of_range = known & ~((scores >= 0.0) & (scores <= 1.0 + _NEAR))
    total = np.where(known, scores, 0.0).sum(axis=1)
    return np.asarray(out_of_range.any(axis=1) | ~(np.abs(total - 1.0) <= _SUM_NEAR))


def _bad_confidence(rows: pa.Table, scores: Scores) -> Mask:
    ranked = np.sort(scores, axis=1)
    lead = ranked[:, -1] - np.maximum(ranked[:, -2], 0.0)
    off_best = np.abs(rows["confidence"].to_numpy().astype(np.float64) - ranked[:, -1])
    off_lead = np.abs(rows["margin"].to_numpy().astype(np.float64) - lead)
    return np.asarray(~((off_best <= _NEAR) & (off_lead <= _NEAR)))  # negated so that NaN counts as bad


def _bad_label(rows: pa.Table, scores: Scores) -> Mask:
    emotions = rows["emotion"].to_pylist()
    expected = [_emotion(label) for label in rows["label"].to_pylist()]
    columns = np.array([EMOTIONS.index(emotion) if emotion in EMOTIONS else -1 for emotion in expected])
    own = scores[np.arange(len(scores)), np.maximum(columns, 0)]
    wrong = np.array([one not in (None, other) for one, other in zip(emotions, expected, strict=True)]) | (columns < 0)
    return np.asarray(wrong | ~(own >= scores.max(axis=1) - _NEAR))


def _emotion(label: str | None) -> str | None:
    try:
        return None if label is None else emotion_of(label)
    except ConfigError:
        return None

"""Label, emotion, scores, confidence and margin of rows, recomputed from `label_scores` and the recorded label map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import primary_language
from pipeline.config.labels import LabelMaps, emotion_by
from pipeline.schema import ABSTAINED, DIMENSIONS, EMOTIONS, REGRESSION, THRESHOLD, UNMAPPED

_NEAR = 1e-5
"""Tolerance between a float32 score and a copy or a sum of it."""
_SUM_NEAR = 1e-3
"""Tolerance of the sum of a softmax from 1: float32 roundings of its classes, and a margin for half precision."""
Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]


class LabelScores:
    """Checks of N rows of a dataset of schema version 3.

    Args:
        rows: with the columns of the schema.
        maps: the label maps in the settings.
    """

    def __init__(self, rows: pa.Table, maps: LabelMaps | None) -> None:
        self._rows, self._maps = rows, maps
        column = rows["label_scores"].combine_chunks()
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        self._counts = np.diff(offsets)
        names = column.keys.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
        values = column.items.slice(offsets[0], offsets[-1] - offsets[0])
        self._names: list[str] = names.dictionary.to_pylist()
        self._codes = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self._values = values.to_numpy(zero_copy_only=False).astype(np.float64)
        self._row_of = np.repeat(np.arange(rows.num_rows), self._counts)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self.labelled = self._counts > 0
        """Mask of rows with a score for at least one label."""

    @cached_property
    def _languages(self) -> tuple[list[str], NDArray[np.int64]]:
        """The primary languages, and the index of each row's."""
        tags = self._rows["language"].combine_chunks().dictionary_encode()
        return list(map(primary_language, tags.dictionary.to_pylist())), tags.indices.to_numpy().astype(np.int64)

    @cached_property
    def _ranked(self) -> tuple[Scores, Scores]:
        """The highest and the second highest score of each row; 0 where there is none."""
        ordered = self._values[np.lexsort((self._values, self._row_of))]
        ends = self._starts[1:]
        best, second = np.zeros(len(ends)), np.zeros(len(ends))
        best[self._counts > 0] = ordered[ends[self._counts > 0] - 1]
        second[self._counts > 1] = ordered[ends[self._counts > 1] - 2]
        return best, second

    def bad_scores(self) -> Mask:
        """Return a mask of rows with scores that are not those of the labels, or values that are not finite."""
        outside = ~((self._values >= 0.0) & (self._values <= 1.0 + _NEAR))
        bad = np.bincount(self._row_of, outside, self._rows.num_rows) > 0
        total = np.bincount(self._row_of, self._values, self._rows.num_rows)
        softmax = np.asarray(self._rows["labels"].combine_chunks().is_null())
        bad |= self.labelled & softmax & ~(np.abs(total - 1.0) <= _SUM_NEAR)
        bad |= self._differs_from_sums() | (
            np.asarray(self._rows["scores"].combine_chunks().is_null()) == self.labelled
        )
        for name in DIMENSIONS:
            column = self._rows[name].combine_chunks()
            values = column.to_numpy(zero_copy_only=False)
            bad |= np.asarray(column.is_valid()) & ~np.isfinite(values)
        return np.asarray(bad)

    def _differs_from_sums(self) -> Mask:
        emotions = self._emotion_numbers()
        mapped = emotions >= 0
        places = (self._row_of[mapped], emotions[mapped])
        sums, known = (
            np.zeros((self._rows.num_rows, len(EMOTIONS))),
            np.zeros((self._rows.num_rows, len(EMOTIONS)), bool),
        )
        np.add.at(sums, places, self._values[mapped])
        known[places] = True
        bad = np.zeros(self._rows.num_rows, dtype=bool)
        column = self._rows["scores"].combine_chunks()
        for number in range(len(EMOTIONS)):
            field = column.field(number)
            values = field.to_numpy(zero_copy_only=False).astype(np.float64)
            bad |= self.labelled & (np.asarray(field.is_valid()) != known[:, number])
            bad |= self.labelled & known[:, number] & ~(np.abs(values - sums[:, number]) <= _NEAR)
        return bad

    def _emotion_numbers(self) -> NDArray[np.int64]:
        """Return the index of each score's emotion, -1 without one."""
        languages, of_row = self._languages
        known = {emotion: number for number, emotion in enumerate(EMOTIONS)}
        table = np.array(
            [[known.get(emotion_by(self._maps, tag, name) or "", -1) for name in self._names] for tag in languages],
            np.int64,
        ).reshape(len(languages), len(self._names))
        return np.asarray(table[of_row[self._row_of], self._codes])

    def bad_confidence(self) -> Mask:
        """Return a mask of rows whose confidence or margin is not that of their label scores."""
        best, second = self._ranked
        bad = np.zeros(len(best), dtype=bool)
        for name, expected in (("confidence", best), ("margin", best - second)):
            column = self._rows[name].combine_chunks()
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)
            bad |= np.asarray(column.is_valid()) != self.labelled
            bad |= self.labelled & ~(np.abs(values - expected) <= _NEAR)
        return np.asarray(bad)

    def bad_label(self) -> Mask:
        """Return a mask of rows whose label is not the best one, or whose `labels` are not those above the threshold."""
        codes = {name: code for code, name in enumerate(self._names)}
        of_label = np.array([codes.get(label, -1) for label in self._rows["label"].to_pylist()], np.int64)
        hit = self._codes == of_label[self._row_of]
        own = np.full(self._rows.num_rows, -1.0)
        own[self._row_of[hit]] = self._values[hit]
        doubled = np.bincount(self._row_of[hit], minlength=self._rows.num_rows) > 1
        absent = np.asarray(self._rows["label"].combine_chunks().is_null())
        bad = np.where(self.labelled, doubled | ~(own >= self._ranked[0] - _NEAR), ~absent)
        for row, above in enumerate(self._rows["labels"].to_pylist()):
            if above is not None:
                span = slice(self._starts[row], self._starts[row + 1])
                scores = zip(self._codes[span], self._values[span], strict=True)
                bad[row] |= not self.labelled[row] or sorted(above) != sorted(
                    self._names[code] for code, score in scores if score > THRESHOLD
                )
        return np.asarray(bad)

    def bad_emotion(self, abstained: Sequence[bool]) -> Mask:
        """Return a mask of rows whose emotion, or reason for having none, does not follow from label and abstention."""
        columns = (self._rows[name].to_pylist() for name in ("label", "emotion", "emotion_null_reason"))
        languages, of_row = self._languages
        bad = []
        for row, (label, *actual) in enumerate(zip(*columns, strict=True)):
            emotion = None if label is None else emotion_by(self._maps, languages[of_row[row]], label)
            reason = REGRESSION if label is None else UNMAPPED if emotion is None else None
            bad.append(actual != ([None, ABSTAINED] if abstained[row] else [emotion, reason]))
        return np.array(bad, dtype=bool)

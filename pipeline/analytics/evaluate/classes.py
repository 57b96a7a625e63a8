"""Classes of an evaluation: emotions, and labels of a model that are not emotions.

A model's label belongs to the class of its emotion, as the output maps it, or else forms a class of its own. A true label
belongs to the class of the model's label that it equals, ignoring case, or to an emotion by its usual names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS, UNMAPPED, emotion_of


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of an output.

    Attributes:
        names: the emotions, then the other labels of the model.
        of_label: class of each label of the model.
    """

    names: tuple[str, ...]
    of_label: Mapping[str, int]

    @classmethod
    def of(cls, table: pa.Table) -> Classes:
        """Find the classes in the rows of an output: columns `label` and, where they exist, `emotion`,
        `emotion_null_reason` and `label_scores`."""
        labels = set(table["label"].unique().drop_null().to_pylist())
        if "label_scores" in table.column_names:
            labels.update(_entries(table["label_scores"])[1])
        emotions = _recorded(table)
        names = {label: emotions.get(label) or _emotion(label) or label.strip().casefold() for label in labels}
        names |= {label: label.strip().casefold() for label, emotion in emotions.items() if emotion is None}
        ordered = (*EMOTIONS, *sorted(set(names.values()) - set(EMOTIONS)))
        return cls(ordered, {label: ordered.index(name) for label, name in names.items()})

    def numbers(self, labels: Iterable[str]) -> NDArray[np.int64]:
        """Return the class of each label of the model: int64 [N]."""
        return np.array([self.of_label[label] for label in labels], np.int64)

    def truth(self, column: pa.ChunkedArray) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Return the class of each true label, -1 without one, and the numbers of rows of labels outside the classes."""
        by_name = {label.strip().casefold(): number for label, number in self.of_label.items()}
        texts = column.cast(pa.string())
        numbers: dict[str, int] = {}
        for word in texts.unique().drop_null().to_pylist():
            emotion = _emotion(word)
            by_emotion = -1 if emotion is None else self.names.index(emotion)
            numbers[word] = by_name.get(word.strip().casefold(), by_emotion)
        values = texts.to_pylist()
        unknown = Counter(word for word in values if word is not None and numbers[word] < 0)
        return np.array([-1 if word is None else numbers[word] for word in values], np.int64), dict(unknown)

    def scores(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the scores of the classes: float64 [N, classes]; 0 for a class that the model does not know."""
        scores = np.zeros((table.num_rows, len(self.names)))
        if "label_scores" in table.column_names:
            rows, labels, values = _entries(table["label_scores"])
            np.add.at(scores, (rows, self.numbers(labels)), values)
            return scores
        structs = table["scores"].combine_chunks()
        for number, emotion in enumerate(EMOTIONS):
            scores[:, number] = structs.field(emotion).fill_null(0.0).to_numpy(zero_copy_only=False)
        return scores


def _entries(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str], NDArray[np.float64]]:
    """Return the row, the key and the value of each entry of a map column; null values count as 0."""
    maps = column.combine_chunks()
    offsets = maps.offsets.to_numpy()
    entries = slice(int(offsets[0]), int(offsets[-1]))
    keys, values = maps.keys.to_pylist()[entries], maps.items.fill_null(0.0).to_numpy(zero_copy_only=False)[entries]
    return np.repeat(np.arange(len(maps)), np.diff(offsets)), keys, values.astype(np.float64)


def _recorded(table: pa.Table) -> dict[str, str | None]:
    """Return the emotion of each label as the output maps it; None for labels that it maps to none.

    Rows whose emotion is null for another reason, such as abstention, tell nothing.
    """
    if "emotion" not in table.column_names or "emotion_null_reason" not in table.column_names:
        return {}
    pairs = table.select(["label", "emotion", "emotion_null_reason"]).group_by(
        ["label", "emotion", "emotion_null_reason"]
    )
    return {
        row["label"]: row["emotion"]
        for row in pairs.aggregate([]).to_pylist()
        if row["label"] is not None and (row["emotion"] is not None or row["emotion_null_reason"] == UNMAPPED)
    }


def _emotion(word: str) -> str | None:
    try:
        return emotion_of(word)
    except ConfigError:
        return None

"""The audit of results that follow from `label_scores`: independent classes, dimensions and labels without an emotion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.verify.label_scores import LabelScores
from pipeline.schema import EMOTIONS, utterance_schema

MAPS = {"en": {"excited": "joy"}, "*": {"calm": None}}
SOFTMAX = {
    "language": "en-GB", "label": "happy", "label_scores": [("happy", 0.5), ("excited", 0.25), ("calm", 0.25)], "labels": None,
    "emotion": "joy", "emotion_null_reason": None, "confidence": 0.5, "margin": 0.25, "scores": {"joy": 0.75},
}  # fmt: skip
UNMAPPED = {
    **SOFTMAX, "language": "es", "label": "excited", "label_scores": [("sad", 0.25), ("excited", 0.75)], "emotion": None,
    "emotion_null_reason": "unmapped", "confidence": 0.75, "margin": 0.5, "scores": {"sadness": 0.25},
}  # fmt: skip
SIGMOID = {
    **SOFTMAX, "label": "sad", "label_scores": [("sad", 0.9375), ("angry", 0.75), ("joy", 0.5)], "labels": ["sad", "angry"],
    "emotion": "sadness", "confidence": 0.9375, "margin": 0.1875, "scores": {"sadness": 0.9375, "anger": 0.75, "joy": 0.5},
}  # fmt: skip
REGRESSION = {
    "language": "en", "emotion_null_reason": "regression", "arousal": 0.5, "valence": 1.25,
    **dict.fromkeys(("label", "label_scores", "labels", "emotion", "confidence", "margin", "scores")),
}  # fmt: skip
ABSTAINED = {**SOFTMAX, "emotion": None, "emotion_null_reason": "abstained"}
ROWS = {"softmax": SOFTMAX, "unmapped": UNMAPPED, "sigmoid": SIGMOID, "regression": REGRESSION, "abstained": ABSTAINED}


def faults(rows: list[dict[str, Any]], maps: Any = MAPS) -> list[set[str]]:
    """The names of the checks that each row fails."""
    schema = utterance_schema({}, "float32", version=3)
    fields = [schema.field(name) for name in ("arousal", "valence", "dominance", *SOFTMAX)]
    table = pa.Table.from_pylist(rows, pa.schema(fields)).combine_chunks()
    checks = LabelScores(table, maps)
    masks = {
        "scores": checks.bad_scores(),
        "confidence": checks.bad_confidence(),
        "label": checks.bad_label(),
        "emotion": checks.bad_emotion([row.get("emotion_null_reason") == "abstained" for row in rows]),
    }
    return [{name for name, mask in masks.items() if mask[number]} for number in range(len(rows))]


def test_sound_rows_of_every_kind_have_no_fault():
    """Fails if the audit accuses rows of one kind of model, alone or beside others, or from the middle of a table."""
    assert faults(list(ROWS.values())) == [set()] * len(ROWS)
    assert [faults([row]) for row in ROWS.values()] == [[set()]] * len(ROWS)


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("softmax", {"emotion": "neutral"}, {"emotion"}),
        ("softmax", {"emotion": None, "emotion_null_reason": "unmapped"}, {"emotion"}),
        ("softmax", {"label": "calm", "emotion": None, "emotion_null_reason": "unmapped"}, {"label"}),
        ("softmax", {"scores": {"joy": 0.5}}, {"scores"}),
        ("softmax", {"scores": {"joy": 0.75, "neutral": 0.25}}, {"scores"}),
        ("softmax", {"scores": None}, {"scores"}),
        ("softmax", {"confidence": 0.75}, {"confidence"}),
        ("softmax", {"margin": 0.5}, {"confidence"}),
        ("softmax", {"margin": None}, {"confidence"}),
        ("softmax", {"label_scores": [("happy", 0.5), ("excited", 0.25)]}, {"scores"}),
        (
            "softmax",
            {"label_scores": [("happy", 0.5), ("excited", 0.25), ("calm", math.nan)]},
            {"scores", "confidence", "label"},
        ),
        ("softmax", {"labels": ["happy"]}, {"label"}),
        ("softmax", {"label": None}, {"label", "emotion"}),
        ("unmapped", {"emotion": "joy", "emotion_null_reason": None}, {"emotion"}),
        ("unmapped", {"emotion_null_reason": None}, {"emotion"}),
        ("unmapped", {"emotion_null_reason": "regression"}, {"emotion"}),
        ("unmapped", {"scores": {"sadness": 0.25, "joy": 0.75}}, {"scores"}),
        ("sigmoid", {"labels": None}, {"scores"}),
        ("sigmoid", {"labels": ["sad"]}, {"label"}),
        ("sigmoid", {"labels": ["sad", "angry", "joy"]}, {"label"}),
        ("sigmoid", {"label": "angry", "emotion": "anger"}, {"label"}),
        ("sigmoid", {"label_scores": [("sad", 1.5), ("angry", 0.75), ("joy", 0.5)]}, {"scores", "confidence"}),
        ("regression", {"emotion_null_reason": None}, {"emotion"}),
        ("regression", {"emotion": "joy"}, {"emotion"}),
        ("regression", {"label": "happy"}, {"label", "emotion"}),
        ("regression", {"labels": []}, {"label"}),
        ("regression", {"confidence": 0.5}, {"confidence"}),
        ("regression", {"scores": {"joy": 0.5}}, {"scores"}),
        ("regression", {"valence": math.inf}, {"scores"}),
        ("abstained", {"emotion": "joy"}, {"emotion"}),
        ("abstained", {"emotion_null_reason": "abstained", "label": "calm"}, {"label"}),
    ],
)
def test_a_damaged_value_is_noticed(kind, change, expected):
    """Fails if a value of the row that does not follow from its label scores and the map passes, or a neighbour is accused."""
    damaged = {**ROWS[kind], **change}
    assert faults([SIGMOID, damaged, UNMAPPED]) == [set(), expected, set()]


def test_another_map_is_noticed():
    """Fails if emotions are checked by the built-in map alone, or with the map of another language."""
    assert faults([SOFTMAX, UNMAPPED], None) == [{"scores"}, set()]
    assert faults([SOFTMAX, UNMAPPED], {"es": {"excited": "joy"}}) == [{"scores"}, {"scores", "emotion"}]
    assert faults([SOFTMAX], {"en": {"happy": "neutral", "excited": "joy"}}) == [{"scores", "emotion"}]


def test_sums_of_float32_scores_are_within_the_tolerance():
    """Fails if rows as a model writes them, with many labels of one emotion, are accused because of float32 sums."""
    random = np.random.default_rng(1)
    rows = []
    for _ in range(200):
        values = random.dirichlet(np.ones(len(EMOTIONS) + 1)).astype(np.float32)
        names = [*EMOTIONS, "happy"]
        scores = {name: float(value) for name, value in zip(EMOTIONS, values, strict=False)}
        scores["joy"] = float(values[names.index("joy")] + values[-1])
        ranked = np.sort(values)
        label = names[int(values.argmax())]
        rows.append({
            "language": "en", "label": label, "emotion": "joy" if label == "happy" else label, "scores": scores,
            "label_scores": list(zip(names, values.tolist(), strict=True)), "confidence": float(ranked[-1]),
            "margin": float(ranked[-1] - ranked[-2]),
        })  # fmt: skip
    assert faults(rows) == [set()] * len(rows)

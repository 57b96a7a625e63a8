"""Shards annotated with models of every kind of head: their columns, and the audit of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.schema import EMOTIONS
from tests.support.pins import by_role
from tests.support.shards import CLIP, by_hand, parts, published, row, work_of
from tests.support.tiny_models import audio_checkpoint, text_checkpoint

IEMOCAP = ("ang", "hap", "neu", "sad", "exc")
ATTRIBUTES = ("arousal", "dominance", "valence")


def annotated(folder: Path, model: Path, mode: str = "audio", count: int = 3, **flags: object):
    """The rows and the audit of an output of `count` rows."""
    records = [row(number, **({"audio": None} if mode == "text" else {})) for number in range(count)]
    if mode == "audio":
        records = [{**record, "offset": 0.25 * number} for number, record in enumerate(records)]
    work = work_of(folder, records, {"fusion/en": str(model)}, mode, segmentation="none", **flags)
    by_hand(work)
    return parts(work).to_pylist(), audit(published(work), deep=True), work


def classifier(folder: Path, **changes: object) -> Path:
    audio_checkpoint(folder, "wav2vec2", feat_extract_norm="layer", **{"names": IEMOCAP, **changes})
    return folder


def test_scores_of_an_emotion_are_the_sum_of_its_labels(tmp_path):
    """Fails if labels of one emotion overwrite each other's score, or confidence is that of the emotion instead of the label."""
    rows, found, _ = annotated(tmp_path, classifier(tmp_path / "m"), label_map=["exc=joy,neu="])
    assert (found.status, found.violations) == ("sound", ())
    for each in rows:
        scores = dict(each["label_scores"])
        assert list(scores) == list(IEMOCAP) and each["label"] == max(scores, key=scores.__getitem__)
        assert each["scores"]["joy"] == float(np.float32(scores["hap"]) + np.float32(scores["exc"]))
        assert (each["scores"]["anger"], each["scores"]["neutral"]) == (scores["ang"], None)
        assert each["confidence"] == max(scores.values())
        emotion = {"ang": "anger", "hap": "joy", "sad": "sadness", "exc": "joy"}.get(each["label"])
        assert (each["emotion"], each["emotion_null_reason"]) == (emotion, None if emotion else "unmapped")
        assert each["labels"] is None and each["arousal"] is None


def test_a_label_without_an_emotion_keeps_its_row(tmp_path):
    """Fails if an unmapped label costs a row, its label and scores, or goes without the reason."""
    rows, found, _ = annotated(tmp_path, classifier(tmp_path / "m", names=("calm", "bored", "tired")))
    assert (found.status, len(rows)) == ("sound", 3)
    for each in rows:
        assert (each["emotion"], each["emotion_null_reason"], each["abstained"]) == (None, "unmapped", False)
        assert each["label"] in ("calm", "bored", "tired") and set(each["scores"].values()) == {None}
        assert each["model"].startswith("audio-en:")


def test_independent_classes(tmp_path):
    """Fails if sigmoids are written as if they were a softmax, or `labels` misses one above the threshold."""
    _, _, checkpoint = text_checkpoint(tmp_path / "m", "roberta", problem_type="multi_label_classification")
    rows, found, _ = annotated(tmp_path, checkpoint.directory, "text")
    assert (found.status, found.violations) == ("sound", ())
    for each in rows:
        scores = dict(each["label_scores"])
        assert each["labels"] == [label for label, score in scores.items() if score > 0.5]
        assert each["label"] == max(scores, key=scores.__getitem__) and abs(sum(scores.values()) - 1) > 0.01


def test_dimensions(tmp_path):
    """Fails if a regression gets a label, or its rows lose their model, dimensions or embedding."""
    rows, found, work = annotated(
        tmp_path, classifier(tmp_path / "m", names=ATTRIBUTES, problem_type="regression"), min_confidence=0.9
    )
    assert (found.status, found.violations) == ("sound", ())
    assert len({each["arousal"] for each in rows}) == 3
    for each in rows:
        assert all(isinstance(each[name], float) for name in ATTRIBUTES)
        missing = ("label", "label_scores", "labels", "emotion", "scores", "confidence", "margin")
        assert [each[name] for name in missing] == [None] * len(missing)
        assert (each["emotion_null_reason"], each["abstained"]) == ("regression", False)
        assert each["model"] and each["audio_embedding"]
    (part,) = Path(work.output).glob("utterances/*.parquet")
    assert b"scale" not in pq.read_schema(part).field("arousal").metadata


def test_a_calibration_of_independent_classes_is_refused(tmp_path):
    """Fails if a job with a calibration starts with a model whose scores no temperature may change."""
    from pipeline.config.labels import LabelRules

    _, _, checkpoint = text_checkpoint(tmp_path / "m", "roberta", problem_type="multi_label_classification")
    with pytest.raises(ConfigError, match="--calibration is for models with a softmax"):
        roles.pin(by_role({"fusion/en": str(checkpoint.directory)}), "text", rules=LabelRules(3, None, calibrated=True))


def test_a_warning_names_unmapped_labels_once(tmp_path, caplog):
    """Fails if an annotator warns at every call, or gives other columns than the job."""
    annotator = pipeline.Annotator(mode="audio", emotion_model=str(classifier(tmp_path / "m")), segmentation="none")
    first, second = annotator.annotate(CLIP), annotator.annotate(CLIP)
    (warning,) = (message for message in caplog.messages if "labels without an emotion" in message)
    assert "'exc'" in warning and "'hap'" not in warning
    rows, _, _ = annotated(tmp_path, tmp_path / "m", count=1)
    one, two = first.to_arrow().to_pylist()[0], second.to_arrow().to_pylist()[0]
    assert one == two
    job = rows[0]
    for name in ("label", "label_scores", "labels", "emotion", "scores", "confidence", "margin", "model", "arousal"):
        assert one[name] == job[name], name
    assert set(EMOTIONS) == set(one["scores"])
    mapped = pipeline.Annotator(
        mode="audio", emotion_model=str(tmp_path / "m"), segmentation="none", label_map={"exc": "joy", "hap": None}
    )
    scores = mapped.annotate(CLIP).to_arrow()["scores"].to_pylist()[0]
    assert scores["joy"] == dict(one["label_scores"])["exc"]

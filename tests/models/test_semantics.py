"""Meaning of heads: labels, emotions, independent classes and dimensions, from tiny checkpoints in published layouts."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from pipeline.config.labels import LabelRules, emotion_by, label_maps
from pipeline.errors import ConfigError
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.families.protocol import Declaration, Head, HeadKind
from pipeline.models.semantics import meaning_of, warnings_of
from tests.support.tiny_models import audio_checkpoint, stock_logits, text_checkpoint, tones

CLIPS = tones(16_000, 9_000, 24_000)
IEMOCAP = ("ang", "hap", "neu", "sad", "exc")
SOFTMAX = Head(HeadKind.SOFTMAX, IEMOCAP)
VALUES = Head(HeadKind.REGRESSION, ("activation", "valence", "certainty"), (1.0, 7.0))


def declared(heads):
    return Declaration(("audio",), tuple(heads), {})


def meaning(*heads: Head, maps=None):
    return meaning_of(heads, lambda label: emotion_by(maps, "en", label), "M")


def test_labels_of_a_softmax_head(tmp_path):
    """Fails if a label is not the class with the highest probability, or common spellings have no emotion."""
    network, extractor, checkpoint = audio_checkpoint(
        tmp_path / "m", "wav2vec2", feat_extract_norm="layer", names=IEMOCAP
    )
    result = EmotionRecogniser("audio", checkpoint).recognise(CLIPS, None)
    logits = stock_logits(network, extractor, CLIPS)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    assert result.labels == [IEMOCAP[best] for best in logits.argmax(axis=1)]
    assert result.emotions == ("anger", "joy", "neutral", "sadness", None)
    assert (result.above, dict(result.dimensions)) == (None, {})


def test_labels_of_a_sigmoid_head(tmp_path):
    """Fails if independent classes are made to compete, or `above` is not exactly those over one half."""
    _, _, checkpoint = text_checkpoint(tmp_path / "m", "roberta", problem_type="multi_label_classification")
    recogniser = EmotionRecogniser("text", checkpoint)
    result = recogniser.recognise(None, ["a sad day", "so happy", ""])
    logits = recogniser.runner.run(None, ["a sad day", "so happy", ""]).logits[0]
    np.testing.assert_allclose(result.scores, 1 / (1 + np.exp(-logits)), atol=1e-6)
    names = np.array(result.label_names)
    assert result.above == [list(names[row > 0]) for row in logits]
    assert any(result.above)
    ranked = np.sort(result.scores, axis=1)
    np.testing.assert_array_equal(result.confidence, ranked[:, -1])
    np.testing.assert_array_equal(result.margin, ranked[:, -1] - ranked[:, -2])


def test_dimensions_of_a_regression_head(tmp_path):
    """Fails if a regression gets labels, or its values reach the column of another dimension."""
    network, extractor, checkpoint = audio_checkpoint(
        tmp_path / "m",
        "wav2vec2",
        feat_extract_norm="layer",
        names=("arousal", "dominance", "valence"),
        problem_type="regression",
    )
    result = EmotionRecogniser("audio", checkpoint).recognise(CLIPS, None)
    logits = stock_logits(network, extractor, CLIPS)
    for column, name in enumerate(("arousal", "dominance", "valence")):
        np.testing.assert_allclose(result.dimensions[name], logits[:, column], atol=1e-4)
    assert (result.labels, result.label_names, result.above) == ([None] * 3, (), None)
    assert np.isnan(result.confidence).all() and np.isnan(result.margin).all()


def test_heads_of_several_kinds():
    """Fails if a model with classes and dimensions loses one of them, or a scale is lost."""
    both = meaning(VALUES, SOFTMAX)
    assert (both.head, both.kind, both.labels) == (1, HeadKind.SOFTMAX, IEMOCAP)
    assert [(each.column, each.head, each.output, each.scale) for each in both.dimensions] == [
        ("arousal", 0, 0, (1.0, 7.0)), ("valence", 0, 1, (1.0, 7.0)),
    ]  # fmt: skip
    assert both.unused == ("certainty",)
    with pytest.raises(ConfigError, match="two classes of one name"):
        meaning(Head(HeadKind.SOFTMAX, ("sad", "sad")))
    with pytest.raises(ConfigError, match="two outputs for arousal"):
        meaning(Head(HeadKind.REGRESSION, ("arousal", "activation")))


def test_a_map_of_the_user_comes_first():
    """Fails if a label map is ignored, or that of one language applies to another."""
    maps = {"*": {"exc": "joy", "neu": None}, "es": {"ang": "fear"}}
    assert meaning(SOFTMAX, maps=maps).emotions == ("anger", "joy", None, "sadness", "joy")
    assert emotion_by(maps, "es", " ANG ") == "fear"
    assert emotion_by({"es": {"neu": None}}, "en", "neu") == "neutral"


def test_warnings_name_labels_without_an_emotion():
    """Fails if an unmapped label stops a job or goes unnoticed, or a label mapped to nothing on purpose is named."""
    (sentence,) = warnings_of(declared([SOFTMAX]), "M", "en", LabelRules(3))
    assert "'exc'" in sentence and "'hap'" not in sentence and "--label-map en=exc=" in sentence
    assert list(warnings_of(declared([SOFTMAX]), "M", "en", LabelRules(3, {"*": {"exc": None}}))) == []
    (sentence,) = warnings_of(declared([VALUES]), "M", "en", LabelRules(3))
    assert "'certainty'" in sentence


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (("happy, excited", "very calm"), "--label-map 'en=very calm=EMOTION' names one, and 'en=very calm=' silences"),
        (("a=b", "sad"), "--label-map en=a=b=EMOTION names one"),
        (("happy, excited", "sad"), "A file for --label-map names them"),
    ],
)
def test_the_advice_of_a_warning_can_be_followed(labels, advice):
    """Fails if the option that a warning suggests is read as something else by the shell or by the job."""
    (sentence,) = warnings_of(declared([Head(HeadKind.SOFTMAX, labels)]), "M", "en", LabelRules(3))
    assert advice in sentence
    if words := re.search(r"--label-map (.*EMOTION'?) names", sentence):
        (text,) = shlex.split(words[1])
        assert label_maps([text.replace("EMOTION", "joy")]) == {"en": {labels["=" not in labels[0]]: "joy"}}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (SOFTMAX, "'ang' is unknown"),
        (Head(HeadKind.SOFTMAX, ("sad", "sadness")), "different emotions"),
        (Head(HeadKind.SIGMOID, ("sad", "happy")), "sigmoid head"),
        (Head(HeadKind.REGRESSION, ("arousal",)), "regression head"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_older_datasets_take_the_vocabulary_alone(head, message, version):
    """Fails if a dataset without the columns of version 3 takes a model whose results it cannot hold."""
    with pytest.raises(ConfigError, match=message):
        list(warnings_of(declared([head]), "M", "en", LabelRules(version)))
    list(warnings_of(declared([head]), "M", "en", LabelRules(3)))
    assert list(warnings_of(declared([Head(HeadKind.SOFTMAX, ("sad", "happy"))]), "M", "en", LabelRules(version))) == []


def test_a_calibration_needs_softmax(tmp_path):
    """Fails if a temperature is applied to independent classes, where it was never fitted."""
    sigmoid = Head(HeadKind.SIGMOID, ("sad", "happy"))
    with pytest.raises(ConfigError, match="--calibration is for models with a softmax"):
        list(warnings_of(declared([sigmoid]), "M", "en", LabelRules(3, None, calibrated=True)))
    _, _, checkpoint = text_checkpoint(tmp_path / "m", "roberta", problem_type="multi_label_classification")
    with pytest.raises(ConfigError, match="sigmoid head"):
        EmotionRecogniser("text", checkpoint, temperature=1.5)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((30.0, None), ["first 10.24 s", "--max-segment-s 10.24"]),
        ((10.0, None), []),
        ((None, None), []),
        ((0.5, 0.5), ["at least 1 s"]),
    ],
)
def test_utterances_outside_a_models_durations_are_warned_of(bounds, words):
    """Fails if recordings are cut longer or shorter than a model uses and nobody is told, or a run within them is."""
    model = Declaration(("audio",), (SOFTMAX,), {}, min_samples=16_000, max_samples=163_840)
    sentences = list(warnings_of(model, "M", "en", LabelRules(3, {"*": {"exc": None}}, False, "fp32", *bounds)))
    assert len(sentences) == bool(words)
    assert all(word in sentences[0] for word in words)
    unlimited = Declaration(("audio",), (SOFTMAX,), {})
    assert list(warnings_of(unlimited, "M", "en", LabelRules(3, {"*": {"exc": None}}, False, "fp32", *bounds))) == []

"""transformers' audio classification: its own scores, whatever batch a clip travels in, and strict loading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.families.audio import TYPES
from pipeline.models.families.choice import family_of
from pipeline.models.families.protocol import Batching, HeadKind
from pipeline.models.runner import Runner
from pipeline.pins import Role
from tests.support.tiny_models import LABELS, audio_checkpoint, stock_logits, tones

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NORMED = ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer", "sew", "sew-d")
VARIANTS = [(kind, {"feat_extract_norm": norm}) for kind in NORMED for norm in ("layer", "group")]
VARIANTS += [(kind, {}) for kind in TYPES if kind not in NORMED]
PADDED = {("wav2vec2", "layer"), ("hubert", "layer"), ("wavlm", "layer"), ("unispeech-sat", "layer"),
          ("wav2vec2-bert", None), ("whisper", None), ("audio-spectrogram-transformer", None)}  # fmt: skip


def loaded(checkpoint, **options):
    family = family_of("audio", checkpoint)
    family.check()
    return Runner(family.load(device=CPU, precision="fp32"), **{"max_batch": 8, **options})


@pytest.mark.parametrize(
    ("model_type", "changes"),
    VARIANTS,
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value,
)
def test_scores_are_those_of_transformers_in_any_batch(tmp_path, model_type, changes):
    """Fails if features, head, pooling or a padded neighbour change a score by more than 1e-4."""
    network, extractor, checkpoint = audio_checkpoint(tmp_path / "m", model_type, **changes)
    given = tones(16_000, 9_000, 23_456, 16_000, 40_007)
    expected = torch.from_numpy(stock_logits(network, extractor, given)).softmax(dim=-1).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2, "the clips do not differ, so nothing is compared"
    runner = loaded(checkpoint)
    padded = (model_type, changes.get("feat_extract_norm")) in PADDED
    assert runner.model.declaration.batching is (Batching.PADDED if padded else Batching.EQUAL)
    together = runner.run(given, None)
    assert runner.take_figures().batches == (1 if padded else 4), "clips that may share a pass did not"
    np.testing.assert_allclose(together.outputs[0], expected, atol=1e-4)
    order = [3, 1, 4, 0, 2]
    other = runner.run([given[i] for i in order], None)
    np.testing.assert_allclose(other.outputs[0], expected[order], atol=1e-4)
    alone = [runner.run([clip], None) for clip in given]
    np.testing.assert_allclose(np.concatenate([each.outputs[0] for each in alone]), expected, atol=1e-4)
    for name, width in runner.model.declaration.embedding_widths.items():
        assert together.embeddings[name].shape == (5, width)
        single = np.concatenate([each.embeddings[name] for each in alone])
        np.testing.assert_allclose(together.embeddings[name], single, atol=1e-4)


@pytest.mark.parametrize("model_type", [kind for kind in TYPES if kind != "data2vec-audio"])
def test_an_old_pickle_scores_the_same(tmp_path, model_type):
    """Fails if pytorch_model.bin with torch's former names of weight norm loads otherwise, or is refused."""
    network, extractor, checkpoint = audio_checkpoint(tmp_path / "m", model_type, old=True)
    if model_type in NORMED:
        names = torch.load(tmp_path / "m" / "pytorch_model.bin", weights_only=True)
        assert any(name.endswith("conv.weight_g") for name in names)
    given = tones(12_000, 20_000)
    np.testing.assert_allclose(
        loaded(checkpoint).run(given, None).logits[0], stock_logits(network, extractor, given), atol=1e-4
    )


def test_features_follow_the_preprocessor_config(tmp_path):
    """Fails if normalisation is applied, or left out, whatever preprocessor_config.json says."""
    network, _, checkpoint = audio_checkpoint(tmp_path / "m", "wav2vec2", feat_extract_norm="layer")
    path = tmp_path / "m" / "preprocessor_config.json"
    given = [5 * clip for clip in tones(16_000)]
    normalised = loaded(checkpoint).run(given, None).logits[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    raw = loaded(resolve(str(tmp_path / "m"))).run(given, None).logits[0]
    with torch.inference_mode():
        expected = network(torch.from_numpy(given[0])[None]).logits.numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-4)
    assert np.abs(raw - normalised).max() > 1e-3


def test_an_all_layer_sum(tmp_path):
    """Fails if `use_weighted_layer_sum` is ignored."""
    changes = {"feat_extract_norm": "layer", "use_weighted_layer_sum": True}
    network, extractor, checkpoint = audio_checkpoint(tmp_path / "m", "wavlm", **changes)
    given = tones(16_000, 9_000)
    np.testing.assert_allclose(
        loaded(checkpoint).run(given, None).logits[0], stock_logits(network, extractor, given), atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"problem_type": "multi_label_classification"}, HeadKind.SIGMOID),
        ({"problem_type": "regression", "names": ("arousal", "dominance", "valence")}, HeadKind.REGRESSION),
        ({"names": ("valence",)}, HeadKind.REGRESSION),
        ({}, HeadKind.SOFTMAX),
    ],
)
def test_the_head_follows_the_problem_type(tmp_path, changes, kind):
    """Fails if a multi-label model or a regression gets a softmax, or loses the names of its outputs."""
    network, extractor, checkpoint = audio_checkpoint(tmp_path / "m", "hubert", feat_extract_norm="layer", **changes)
    runner = loaded(checkpoint)
    (head,) = runner.model.declaration.heads
    assert (head.kind, head.names) == (kind, changes.get("names", LABELS))
    given = tones(8_000, 16_000)
    logits = stock_logits(network, extractor, given)
    exact = {
        HeadKind.SOFTMAX: torch.from_numpy(logits).softmax(-1).numpy(),
        HeadKind.SIGMOID: 1 / (1 + np.exp(-logits)),
    }
    np.testing.assert_allclose(runner.run(given, None).outputs[0], exact.get(kind, logits), atol=1e-4)


def test_a_temperature_divides_classes_and_leaves_values(tmp_path):
    """Fails if a calibration moves a regression, or does not reach a sigmoid head."""
    _, _, classes = audio_checkpoint(tmp_path / "a", "hubert", problem_type="multi_label_classification")
    _, _, values = audio_checkpoint(tmp_path / "b", "hubert", problem_type="regression")
    given = tones(8_000)
    for checkpoint, divisor in ((classes, 2.0), (values, 1.0)):
        plain, warm = (loaded(checkpoint, temperature=t).run(given, None).logits[0] for t in (1.0, 2.0))
        np.testing.assert_allclose(warm, plain / divisor, rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "longest_s"), [("whisper", 30.0), ("audio-spectrogram-transformer", 2.57), ("hubert", 160.0)]
)
def test_audio_past_the_limit_is_ignored_and_flagged(tmp_path, model_type, longest_s):
    """Fails if a cut clip is not flagged, a whole one is, or the rest changes a score."""
    _, _, checkpoint = audio_checkpoint(tmp_path / "m", model_type)
    runner = loaded(checkpoint)
    limit = runner.model.declaration.max_samples
    assert runner.model.declaration.max_duration_s == pytest.approx(longest_s, abs=0.02)
    (clip,) = tones(limit + 1)
    whole, cut = runner.run([clip[:limit]], None), runner.run([clip], None)
    assert (whole.truncated.tolist(), cut.truncated.tolist()) == ([False], [True])
    np.testing.assert_allclose(whole.logits[0], cut.logits[0], atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    VARIANTS,
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value,
)
def test_the_shortest_clip_runs_and_a_shorter_one_is_named(tmp_path, model_type, changes):
    """Fails if the declared minimum makes no frame, or a clip below it reaches the network."""
    _, _, checkpoint = audio_checkpoint(tmp_path / "m", model_type, **changes)
    runner = loaded(checkpoint)
    shortest = runner.model.declaration.min_samples
    assert np.isfinite(runner.run(tones(shortest), None).outputs[0]).all()
    if shortest > 1:
        with pytest.raises(ValueError, match="utterance 0"):
            runner.run(tones(shortest - 1), None)


def test_half_precision(tmp_path):
    """Fails if bf16 is ignored or breaks a network."""
    _, _, checkpoint = audio_checkpoint(tmp_path / "m", "wavlm", feat_extract_norm="layer")
    family, given = family_of("audio", checkpoint), tones(16_000, 9_000)
    exact, half = (Runner(family.load(device=CPU, precision=p), max_batch=8).run(given, None) for p in ("fp32", "bf16"))
    assert 0 < np.abs(exact.outputs[0] - half.outputs[0]).max() < 0.1


def changed(folder, change):
    """Rewrite the tensors of a checkpoint."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return resolve(str(folder))


def config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return resolve(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.weight"), r"1 missing: classifier\.weight"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(3, 2)}), r"1 unexpected: lm_head\.weight"),
        (
            lambda state: state.update({"projector.bias": torch.zeros(3)}),
            r"projector\.bias has shape \[3\], expected \[16\]",
        ),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_tensor_that_does_not_fit_stops_the_load(tmp_path, change, message):
    """Fails if a head is filled with random numbers, or a tensor is dropped without a word."""
    audio_checkpoint(tmp_path / "m", "wav2vec2")
    family = family_of("audio", changed(tmp_path / "m", change))
    for load in (family.check, lambda: family.load(device=CPU, precision="fp32")):
        with pytest.raises(ConfigError, match=message) as refused:
            load()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModelForAudioClassification": "modeling.Model"}}, "code in a checkpoint is never run"),
        ({"architectures": ["Wav2Vec2ForCTC"]}, "is a Wav2Vec2ForCTC, which has no emotion head"),
        ({"model_type": "clap"}, "is of type 'clap'; mode audio supports wav2vec2, hubert"),
        ({"add_adapter": True}, "does not support the use of"),
        ({"hidden_size": "wide"}, "makes no wav2vec2 model"),
        ({"hidden_act": "shrug"}, "cannot be used: its config.json has no usable 'shrug'"),
        ({"num_attention_heads": 0}, "cannot be used"),
        ({"id2label": {"0": "sad", "1": None}}, "is not a map of 0, 1, ... to names"),
        ({"id2label": {"0": "sad", "1": " "}}, "is not a map of 0, 1, ... to names"),
        ({"id2label": ["sad", "happy"]}, "is not a map of 0, 1, ... to names"),
        ({"num_labels": 5}, r"2 misshapen: classifier\.weight has shape \[4, 16\], expected \[5, 16\]"),
    ],
)
def test_another_kind_of_checkpoint_is_refused_in_one_sentence(tmp_path, values, message):
    """Fails if code of a repository is run, or a speech recogniser is taken for an emotion model."""
    audio_checkpoint(tmp_path / "m", "wav2vec2")
    with pytest.raises(ConfigError, match=message) as refused:
        family_of("audio", config(tmp_path / "m", **values)).check()
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "has no feature extractor"),
        ({"sampling_rate": 8_000}, "at 8000 Hz"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "is WhisperFeatureExtractor"),
    ],
)
def test_a_feature_extractor_of_another_model_is_refused(tmp_path, values, message):
    """Fails if a model runs on features it was not trained with."""
    audio_checkpoint(tmp_path / "m", "wav2vec2")
    path = tmp_path / "m" / "preprocessor_config.json"
    if values is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ConfigError, match=message):
        family_of("audio", resolve(str(tmp_path / "m"))).check()


def test_a_job_takes_such_a_model(tmp_path):
    """Fails if the driver's checks refuse one, plan other columns than it returns, or label by another class."""
    network, extractor, checkpoint = audio_checkpoint(tmp_path / "m", "hubert", feat_extract_norm="layer")
    role = Role.parse("fusion/en")
    pinned, widths = roles.pin({role: checkpoint.spec}, "audio")
    assert (pinned[role].sha256, widths) == (checkpoint.sha256, {"audio_embedding": 16, "fused_embedding": 16})
    given = tones(16_000, 9_000)
    result = EmotionRecogniser("audio", checkpoint).recognise(given, None)
    assert result.labels == [LABELS[best] for best in stock_logits(network, extractor, given).argmax(axis=1)]
    assert result.emotions == ("anger", "joy", "neutral", "sadness")

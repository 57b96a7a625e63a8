"""Pooled heads of two layers, and the Odyssey baselines, against references written from the cited sources."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WavLMConfig

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.families.choice import family_of
from pipeline.models.families.pooled import PooledHeads
from pipeline.models.families.protocol import Head, HeadKind
from pipeline.models.families.ser import OdysseyBaseline
from pipeline.models.families.waveforms import ENCODERS
from pipeline.models.runner import Runner
from tests.models.families.reference_heads import AttentiveMlp, DenseOnMean
from tests.support.tiny_models import LABELS, config_of, extractor_of, filled, tones, write

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
DIMENSIONS = ("arousal", "dominance", "valence")
MEAN, STD = -8.3e-5, 0.085
SER_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def loaded(checkpoint) -> Runner:
    family = family_of("audio", checkpoint)
    family.check()
    return Runner(family.load(device=CPU, precision="fp32"), max_batch=8)


def assert_alike(runner: Runner, given: list[np.ndarray], expected: np.ndarray) -> None:
    """Compare logits together, in another order and alone."""
    assert np.ptp(expected, axis=0).max() > 1e-2, "the clips do not differ, so nothing is compared"
    np.testing.assert_allclose(runner.run(given, None).logits[0], expected, atol=1e-4)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(runner.run([given[i] for i in order], None).logits[0], expected[order], atol=1e-4)
    alone = np.concatenate([runner.run([clip], None).logits[0] for clip in given])
    np.testing.assert_allclose(alone, expected, atol=1e-4)


def dense(folder, model_type="wav2vec2", *, last="out_proj", norm="layer", names=DIMENSIONS, old=False, **values):
    """A reference with the dense head, its feature extractor, and both as a checkpoint."""
    config = config_of(model_type, feat_extract_norm=norm, names=names)
    network = filled(DenseOnMean(config, len(names), last=last))
    extractor = extractor_of(config)
    extractor.save_pretrained(folder)
    described = {"architectures": ["Wav2Vec2ForSpeechClassification"], "problem_type": None, **values}
    return network, extractor, write(folder, network, config, old=old, **described)


@torch.inference_mode()
def dense_logits(network, extractor, given, pooling="mean"):
    each = [extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values for clip in given]
    return torch.cat([network(values, pooling) for values in each]).numpy()


@pytest.mark.parametrize("old", [False, True])
def test_dimensions_in_the_layout_of_audeering(tmp_path, old):
    """Fails if a regression gets a softmax, or a clip's values depend on its neighbours."""
    network, extractor, checkpoint = dense(tmp_path / "m", old=old, problem_type="regression")
    runner, given = loaded(checkpoint), tones(16_000, 9_000, 23_456, 40_007)
    assert runner.model.declaration.heads == (Head(HeadKind.REGRESSION, DIMENSIONS, (0.0, 1.0)),)
    assert_alike(runner, given, dense_logits(network, extractor, given))
    assert runner.run(given, None).embeddings["audio_embedding"].shape == (4, 32)


def test_classes_in_the_layout_of_ehcalabres(tmp_path):
    """Fails if `classifier.output` is refused or another head is put in its place."""
    values = {"architectures": ["Wav2Vec2ForSequenceClassification"], "pooling_mode": "mean"}
    network, extractor, checkpoint = dense(tmp_path / "m", last="output", names=LABELS, **values)
    runner, given = loaded(checkpoint), tones(16_000, 9_000, 23_456, 40_007)
    assert runner.model.declaration.heads == (Head(HeadKind.SOFTMAX, LABELS),)
    assert_alike(runner, given, dense_logits(network, extractor, given))


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_any_encoder_of_raw_waveforms(tmp_path, model_type, norm):
    """Fails if a relative of wav2vec2 is padded where it must not be."""
    network, extractor, checkpoint = dense(tmp_path / "m", model_type, norm=norm, names=LABELS)
    given = tones(16_000, 9_000, 23_456, 16_000)
    assert_alike(loaded(checkpoint), given, dense_logits(network, extractor, given))


@pytest.mark.parametrize("pooling", ["sum", "max"])
def test_other_poolings_of_soxan(tmp_path, pooling):
    """Fails if `pooling_mode` is ignored, or padding enters a maximum or a sum."""
    network, extractor, checkpoint = dense(tmp_path / "m", names=LABELS, pooling_mode=pooling)
    given = tones(16_000, 9_000, 23_456, 40_007)
    assert_alike(loaded(checkpoint), given, dense_logits(network, extractor, given, pooling))
    with pytest.raises(ConfigError, match="pooling_mode 'median'"):
        family_of("audio", dense(tmp_path / "n", pooling_mode="median")[2]).check()


def odyssey(folder, *, names=LABELS, layers=1, old=False, **values):
    """A reference with attentive pooling, and its checkpoint as the challenge's authors write it."""
    config = WavLMConfig(**SER_SIZES, intermediate_size=128, feat_extract_norm="layer", do_stable_layer_norm=True,
                         mask_time_prob=0.0)  # fmt: skip
    network = filled(AttentiveMlp(config, layers, len(names)))
    described = {
        "model_type": "ser", "architectures": ["SERModel"], "ssl_type": "microsoft/wavlm-large", "num_classes": len(names),
        "auto_map": {"AutoConfig": "pipeline_utils.SERConfig", "AutoModelForAudioClassification": "pipeline_utils.SERModel"},
        "classifier_hidden_layers": layers, "mean": MEAN, "std": STD, "sampling_rate": 16_000, **SER_SIZES,
        "id2label": {str(i): name for i, name in enumerate(names)}, **values,
    }  # fmt: skip
    return network, write(folder, network, config, old=old, **described)


@torch.inference_mode()
def odyssey_logits(network, given):
    each = [torch.from_numpy((clip - np.float32(MEAN)) / np.float32(STD + 1e-6))[None] for clip in given]
    return torch.cat([network(values) for values in each]).numpy()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("names", "layers", "head"),
    [
        (LABELS, 1, Head(HeadKind.SOFTMAX, LABELS)),
        (DIMENSIONS, 2, Head(HeadKind.REGRESSION, DIMENSIONS, (0.0, 1.0))),
    ],
    ids=["categorical", "attributes"],
)
def test_the_odyssey_baselines(tmp_path, names, layers, head, old):
    """Fails if standardisation, pooling or the MLP differ, padding enters the statistics, or their code is asked for."""
    network, checkpoint = odyssey(tmp_path / "m", names=names, layers=layers, old=old)
    runner, given = loaded(checkpoint), tones(16_000, 9_000, 23_456, 40_007)
    assert isinstance(family_of("audio", checkpoint), OdysseyBaseline)
    assert runner.model.declaration.heads == (head,)
    assert_alike(runner, given, odyssey_logits(network, given))
    assert runner.run(given, None).embeddings["fused_embedding"].shape == (4, 64)


@pytest.mark.parametrize("make", [dense, odyssey])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_tensor_that_does_not_fit_stops_the_load(tmp_path, make, change):
    """Fails if a head is filled with random numbers, or a tensor is dropped without a word."""
    make(tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    name = next(each for each in state if each.startswith(("classifier.", "ser_model.")) and each.endswith("bias"))
    tensor = state.pop(name)
    if change != "missing":
        state |= {name: torch.zeros(5)} if change == "shape" else {name: tensor, "projector.bias": torch.zeros(2)}
    save_file(state, tmp_path / "m" / "model.safetensors")
    family = family_of("audio", resolve(str(tmp_path / "m")))
    for load in (family.check, lambda: family.load(device=CPU, precision="fp32")):
        with pytest.raises(ConfigError, match=change):
            load()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ssl_type": "facebook/hubert-large"}, "has the encoder hubert-large"),
        ({"sampling_rate": 8_000}, "at 8000 Hz"),
        ({"num_classes": 8}, "must agree"),
        ({"std": None}, "std None"),
        ({"std": 0.0}, r"std 0\.0"),
        ({"hidden_size": "wide"}, "no positive numbers"),
        ({"id2label": None}, "does not name its classes"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, values, message):
    """Fails if a config of another encoder or scale is guessed at."""
    _, checkpoint = odyssey(tmp_path / "m", **values)
    with pytest.raises(ConfigError, match=message) as refused:
        family_of("audio", checkpoint).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": ["HubertForSpeechClassification"]},
        {"architectures": ["Wav2Vec2ForSequenceClassification"], "finetuning_task": "wav2vec2_clf"},
        {"architectures": None, "pooling_mode": "mean"},
    ],
)
def test_the_family_is_recognised_from_the_config(tmp_path, values):
    """Fails if a checkpoint of this layout is taken for transformers' own."""
    _, _, checkpoint = dense(tmp_path / "m", **values)
    assert isinstance(family_of("audio", checkpoint), PooledHeads)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    """Fails if a custom class with the tensor names of this family is taken for it."""
    dense(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling.Model"}}))
    with pytest.raises(ConfigError, match="code in a checkpoint is never run"):
        family_of("audio", resolve(str(tmp_path / "m")))

"""transformers' text classification: its own scores in any batch, any tokenizer.json, and each type's own positions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.families.choice import family_of
from pipeline.models.families.protocol import HeadKind
from pipeline.models.runner import Runner
from pipeline.models.sentence import CLASSIFIERS
from tests.support.tiny_models import LABELS, text_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TEXTS = ["so it goes", "what a lovely day, is it not?", "", "no", "ünknown letters: 123"]
POSITIONS = {kind: 24 - 2 if kind in ("roberta", "xlm-roberta", "camembert") else 24 for kind in CLASSIFIERS}
"""Tokens that a text may have: RoBERTa and its relatives count positions from pad_token_id + 1."""


def loaded(checkpoint) -> Runner:
    family = family_of("text", checkpoint)
    family.check()
    return Runner(family.load(device=CPU, precision="fp32"))


@torch.inference_mode()
def stock(network, tokenizer, texts, longest):
    """transformers' own logits and first hidden states, one text at a time."""
    tokenizer.enable_truncation(longest)
    ids = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    outputs = [network(input_ids=each, output_hidden_states=True) for each in ids]
    firsts = torch.cat([output.hidden_states[-1][:, 0] for output in outputs])
    return torch.cat([output.logits for output in outputs]).numpy(), firsts.numpy()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_scores_are_those_of_transformers_in_any_batch(tmp_path, model_type, old):
    """Fails if ids, padding, positions or head change a score by more than 1e-4, or a pickle is not read."""
    network, tokenizer, checkpoint = text_checkpoint(tmp_path / "m", model_type, old=old)
    logits, firsts = stock(network, tokenizer, TEXTS, POSITIONS[model_type])
    expected = torch.from_numpy(logits).softmax(dim=-1).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2, "the texts do not differ, so nothing is compared"
    runner = loaded(checkpoint)
    together = runner.run(None, TEXTS)
    assert runner.take_figures().batches == 1
    np.testing.assert_allclose(together.outputs[0], expected, atol=1e-4)
    np.testing.assert_allclose(together.embeddings["text_embedding"], firsts, atol=1e-4)
    order = [3, 0, 4, 2, 1]
    np.testing.assert_allclose(runner.run(None, [TEXTS[i] for i in order]).outputs[0], expected[order], atol=1e-4)
    alone = np.concatenate([runner.run(None, [text]).outputs[0] for text in TEXTS])
    np.testing.assert_allclose(alone, expected, atol=1e-4)


@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_a_long_text_is_cut_at_the_models_positions(tmp_path, model_type):
    """Fails if a long text overruns the position table, is cut short of it, or is cut without the flag."""
    network, tokenizer, checkpoint = text_checkpoint(tmp_path / "m", model_type)
    longest = POSITIONS[model_type]
    texts = ["a " * (longest - 2), "a " * (longest - 1), "b " * 200]
    results = loaded(checkpoint).run(None, texts)
    assert results.text_truncated.tolist() == [False, True, True]
    np.testing.assert_allclose(results.logits[0], stock(network, tokenizer, texts, longest)[0], atol=1e-4)


def test_a_shorter_limit_of_the_tokenizer_is_kept(tmp_path):
    """Fails if `model_max_length` of tokenizer_config.json is ignored."""
    network, tokenizer, _ = text_checkpoint(tmp_path / "m", "bert")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    results = loaded(resolve(str(tmp_path / "m"))).run(None, ["a " * 12])
    np.testing.assert_allclose(results.logits[0], stock(network, tokenizer, ["a " * 12], 9)[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@pytest.mark.parametrize("model_type", ["roberta", "deberta-v2", "bert"])
def test_any_tokenizer_that_tokenizer_json_describes(tmp_path, model_type, kind):
    """Fails if the model type's usual tokenizer replaces the one in the checkpoint, as transformers 5 does."""
    network, tokenizer, checkpoint = text_checkpoint(tmp_path / "m", model_type, kind=kind)
    expected, _ = stock(network, tokenizer, TEXTS, POSITIONS[model_type])
    np.testing.assert_allclose(loaded(checkpoint).run(None, TEXTS).logits[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"problem_type": "multi_label_classification"}, HeadKind.SIGMOID),
        ({"names": ("valence",), "problem_type": "regression"}, HeadKind.REGRESSION),
        ({}, HeadKind.SOFTMAX),
    ],
)
def test_the_head_follows_the_problem_type(tmp_path, changes, kind):
    """Fails if a multi-label classifier gets a softmax, or loses the names of its outputs."""
    network, tokenizer, checkpoint = text_checkpoint(tmp_path / "m", "distilbert", **changes)
    runner = loaded(checkpoint)
    (head,) = runner.model.declaration.heads
    assert (head.kind, head.names) == (kind, changes.get("names", LABELS))
    logits, _ = stock(network, tokenizer, TEXTS, 24)
    exact = {
        HeadKind.SOFTMAX: torch.from_numpy(logits).softmax(-1).numpy(),
        HeadKind.SIGMOID: 1 / (1 + np.exp(-logits)),
    }
    np.testing.assert_allclose(runner.run(None, TEXTS).outputs[0], exact.get(kind, logits), atol=1e-4)


@pytest.mark.parametrize("model_type", ["distilbert", "xlm-roberta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(next(n for n in state if n.startswith("classifier"))), "1 missing: classifier"),
        (lambda state: state.update({"lm.weight": torch.zeros(3)}), "1 unexpected: lm.weight"),
    ],
    ids=["missing", "extra"],
)
def test_a_tensor_that_does_not_fit_stops_the_load(tmp_path, model_type, change, message):
    """Fails if a head is filled with random numbers, or a tensor is dropped without a word."""
    text_checkpoint(tmp_path / "m", model_type)
    state = load_file(tmp_path / "m" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "m" / "model.safetensors")
    family = family_of("text", resolve(str(tmp_path / "m")))
    for load in (family.check, lambda: family.load(device=CPU, precision="fp32")):
        with pytest.raises(ConfigError, match=message):
            load()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "code in a checkpoint is never run"),
        ({"model_type": "gpt2"}, "is of type 'gpt2'; supported are bert"),
        ({"hidden_act": "shrug"}, "cannot be used: its config.json sets hidden_act to 'shrug'"),
        ({"pad_token_id": None}, "has no pad_token_id in its config.json"),
        ({"vocab_size": 30}, "gives ids up to 42; the model has 30 tokens"),
    ],
)
def test_another_kind_of_checkpoint_is_refused_in_one_sentence(tmp_path, values, message):
    """Fails if code of a repository is run, a language model is taken for a classifier, or a fault ends a worker later."""
    text_checkpoint(tmp_path / "m", "roberta")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ConfigError, match=message) as refused:
        family_of("text", resolve(str(tmp_path / "m"))).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{}", "not json"])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    """Fails if a damaged tokenizer.json ends in a stack trace."""
    text_checkpoint(tmp_path / "m", "bert")
    (tmp_path / "m" / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer"):
        family_of("text", resolve(str(tmp_path / "m"))).check()

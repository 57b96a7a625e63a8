"""The reference toolkit's own predictions, all 41, row by row and whatever batch a row travels in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.audio.decode import decode
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser, Recognised, check
from pipeline.models.networks.fusion import FusionModel
from tests.support.golden import CASES, EMBEDDINGS, LONG, PARITY, SCORES, SCORES_RESAMPLED

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = ("audio", "mean", "concat", "multihead", "text")
each_model = pytest.mark.parametrize(("mode", "language"), [(m, lang) for m in MODES for lang in ("en", "es")])


@cache
def recogniser(checkpoints: Path, mode: str, language: str, max_batch: int = 1) -> EmotionRecogniser:
    encoder = resolve(str(checkpoints / f"bert-{language}"))
    return EmotionRecogniser(mode, resolve(str(checkpoints / f"{mode}-{language}")), encoder, max_batch=max_batch)


@cache
def waveform(audio: str) -> np.ndarray:
    return decode((PARITY / audio).read_bytes())


@cache
def embeddings() -> dict[str, np.ndarray]:
    with np.load(PARITY / "golden_embeddings.npz") as stored:
        return dict(stored)


def cases(mode: str, language: str, *, long: bool) -> list[dict]:
    mine = [case for case in CASES if (case["mode"], case["language"]) == (mode, language)]
    return [case for case in mine if long or case["audio"] != LONG]


def run(model: EmotionRecogniser, given: list[dict]) -> Recognised:
    heard = None if model.mode == "text" else [waveform(case["audio"]) for case in given]
    return model.recognise(heard, [case["text"] for case in given])


def golden_scores(case: dict, result: Recognised) -> np.ndarray:
    return np.array([case["scores"][label] for label in result.label_names])


def assert_golden(given: list[dict], result: Recognised) -> None:
    for row, case in enumerate(given):
        as_heard = case["audio"] is None or "_16k_" in case["audio"]
        error = np.abs(result.scores[row] - golden_scores(case, result)).max()
        assert error < (SCORES if as_heard else SCORES_RESAMPLED), (case["case"], error)
        assert result.labels[row] == case["label"], case["case"]
        for name in ("audio", "text", "fused"):
            expected = embeddings().get(f"{case['case']}/{name}")
            if expected is not None and as_heard:
                actual = getattr(result, f"{name}_embedding")[row]
                assert np.abs(actual - expected).max() < EMBEDDINGS, (case["case"], name)


def test_every_case_is_covered():
    """Fails if the golden file gains a mode or language that the tests below do not select."""
    selected = [case["case"] for m in MODES for lang in ("en", "es") for case in cases(m, lang, long=True)]
    assert sorted(selected) == sorted(case["case"] for case in CASES)
    assert len(selected) == 41


@each_model
def test_alone(checkpoints, mode, language):
    """Fails when features, encoder, pooling, fusion, head, text truncation or label order differ from the reference."""
    given = cases(mode, language, long=True)
    result = run(recogniser(checkpoints, mode, language), given)
    assert_golden(given, result)
    too_long = [case["audio"] == LONG and mode != "text" for case in given]
    assert result.truncated.tolist() == too_long
    assert result.text_truncated.tolist() == [mode != "audio" and len(case["text"]) > 4000 for case in given]


@each_model
def test_in_a_mixed_batch_and_in_another_order(checkpoints, mode, language):
    """Fails when padding leaks into a row, the order is not restored, or multihead attends across the batch."""
    alone, batched = recogniser(checkpoints, mode, language), recogniser(checkpoints, mode, language, 64)
    given = cases(mode, language, long=False)
    reference = run(alone, given)
    for order in (list(range(len(given))), list(reversed(range(len(given))))):
        shuffled = [given[i] for i in order]
        result = run(batched, shuffled)
        assert_golden(shuffled, result)
        assert np.abs(result.scores - reference.scores[order]).max() < SCORES
        for name in batched.embedding_widths:
            assert np.abs(getattr(result, name) - getattr(reference, name)[order]).max() < EMBEDDINGS


def test_beside_a_long_clip(checkpoints):
    """Fails when a 0.3 s clip feels 40 s of padding, or when the cut at 160 s moves in a batch."""
    given = [case for case in cases("multihead", "en", long=False) if case["case"].startswith("05")]
    model = recogniser(checkpoints, "multihead", "en", 64)
    result = model.recognise([waveform(LONG)[: 40 * 16_000], waveform(given[0]["audio"])], ["", given[0]["text"]])
    assert np.abs(result.scores[1] - golden_scores(given[0], result)).max() < SCORES
    alone, _ = model.runner.model.features([waveform(LONG)])
    beside, mask = model.runner.model.features([waveform(LONG), waveform(given[0]["audio"])])
    assert alone.shape == (1, 8000, 160)
    assert torch.equal(alone[0], beside[0])
    assert mask.sum(dim=1).tolist()[0] == 8000


@pytest.mark.parametrize("name", ["audio-en", "concat-es"])
def test_pickled_weights_give_the_same(checkpoints, tmp_path, name):
    """Fails when `model.bin`, the form some published repositories use, is not read or read differently."""
    mode, language = name.split("-")
    for file in (checkpoints / name).glob("*.json"):
        shutil.copy(file, tmp_path)
    torch.save(load_file(checkpoints / name / "model.safetensors"), tmp_path / "model.bin")
    encoder, given = resolve(str(checkpoints / f"bert-{language}")), cases(mode, language, long=False)
    pickled = resolve(str(tmp_path))
    check(mode, pickled, encoder)
    assert_golden(given, run(EmotionRecogniser(mode, pickled, encoder), given))


def test_control_the_mask_matters(checkpoints, monkeypatch):
    """Fails if the batch test above would pass with padding heard as audio: then it would prove nothing."""
    honest = FusionModel.forward
    monkeypatch.setattr(
        FusionModel, "forward", lambda self, x, mask, text=None: honest(self, x, torch.ones_like(mask), text)
    )
    given = cases("mean", "en", long=False)
    result = run(recogniser(checkpoints, "mean", "en", 64), given)
    with pytest.raises(AssertionError):
        assert_golden(given, result)


def test_control_the_position_bias_matters(checkpoints):
    """Fails if the golden test would pass without relative positions: then it would not test our attention."""
    model = EmotionRecogniser("audio", resolve(str(checkpoints / "audio-en")))
    for layer in model.runner.model.network.wav2vec2_bert.encoder.layers:
        layer.self_attn.distance_embedding.weight = torch.nn.Parameter(
            torch.zeros_like(layer.self_attn.distance_embedding.weight), requires_grad=False
        )
    given = cases("audio", "en", long=False)
    with pytest.raises(AssertionError):
        assert_golden(given, run(model, given))


def test_control_the_label_order_matters(checkpoints, tmp_path):
    """Fails if shifted class names pass the golden test, or if not the checkpoint's `id2label` names classes."""
    shutil.copytree(checkpoints / "audio-en", tmp_path / "shifted")
    path = tmp_path / "shifted" / "config.json"
    config = json.loads(path.read_text())
    labels = list(config["id2label"].values())
    config["id2label"] = {str(i): labels[(i + 1) % len(labels)] for i in range(len(labels))}
    path.write_text(json.dumps(config))
    shifted = EmotionRecogniser("audio", resolve(str(tmp_path / "shifted")))
    assert shifted.label_names == (*labels[1:], labels[0])
    given = cases("audio", "en", long=False)
    with pytest.raises(AssertionError):
        assert_golden(given, run(shifted, given))
    unshifted = replace(run(shifted, given), label_names=tuple(labels))
    assert np.abs(unshifted.scores[0] - golden_scores(given[0], unshifted)).max() < SCORES

"""Pickles made into safetensors, Whisper into CTranslate2: the same model afterwards, or a refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.convert import is_pickled, is_transformers_whisper, to_ctranslate2, to_safetensors
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, resolve
from pipeline.models.whisper import WhisperTranscriber, check_model
from tests.support.published import whisper

LANGUAGES = {"<|en|>": 694, "<|es|>": 695}


def pickled(folder: Path, state: object, name: str = "pytorch_model.bin") -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    torch.save(state, folder / name)
    return resolve(str(folder))


# -- pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_pickle_becomes_safetensors(tmp_path, name):
    """Fails if a name, type, shape or bit differs: tied, transposed and half-precision tensors, integers, empty ones."""
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "a": whole, "tied": whole, "transposed": whole.T, "part": whole[1], "half": whole.half(), "nan": whole / 0,
        "ids": torch.arange(5), "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    }  # fmt: skip
    source = pickled(tmp_path / "source", state, name)
    (tmp_path / "source" / "modeling.py").write_text("raise SystemExit")
    made = to_safetensors(source, tmp_path / "made")
    assert is_pickled(source) and not is_pickled(made)
    found = load_state_dict(made, dtype=None)
    assert found.keys() == state.keys()
    for tensor_name, tensor in state.items():
        assert found[tensor_name].dtype == tensor.dtype and found[tensor_name].shape == tensor.shape
        assert torch.equal(found[tensor_name].nan_to_num(7), tensor.nan_to_num(7)), tensor_name
    assert sorted(path.name for path in made.directory.iterdir()) == ["config.json", "model.safetensors"]
    assert to_safetensors(source, tmp_path / "again").sha256 == made.sha256


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/this-must-not-exist-of-speech-emotion",)


def test_a_pickle_of_more_than_tensors_is_not_converted(tmp_path):
    """Fails if preparing runs what stands in a pickle."""
    with pytest.raises(ConfigError, match="nothing in it was run"):
        to_safetensors(pickled(tmp_path / "source", {"a": Evil()}), tmp_path / "made")
    assert not Path("/tmp/this-must-not-exist-of-speech-emotion").exists()


# -- Whisper


def test_whisper_computes_the_same_after_conversion(tmp_path):
    """Fails if weights are lost or swapped on the way to CTranslate2, or the files a job needs are not all there."""
    model = whisper(tmp_path / "source", lang_to_id=LANGUAGES, alignment_heads=[[1, 0]], suppress_tokens=[1, 2])
    source = resolve(str(tmp_path / "source"))
    made = to_ctranslate2(source, tmp_path / "made")
    assert is_transformers_whisper(source) and not is_transformers_whisper(made)
    config = made.read_json("config.json")
    assert (config["lang_ids"], config["alignment_heads"], config["suppress_ids"]) == ([694, 695], [[1, 0]], [1, 2])
    check_model(made.directory, "es")
    features = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    converted = ctranslate2.models.Whisper(str(made.directory), device="cpu", compute_type="float32")
    heard = np.array(converted.encode(ctranslate2.StorageView.from_array(features)))
    with torch.inference_mode():
        expected = model.model.encoder(torch.from_numpy(features)).last_hidden_state.numpy()
    assert np.abs(heard - expected).max() < 5e-3 * np.abs(expected).max()  # float16 weights
    transcriber = WhisperTranscriber(made.directory, device="cpu", compute_type="float32", num_threads=1)
    assert isinstance(transcriber.transcribe(np.zeros(16_000, np.float32), "en").text, str)


def test_whisper_as_an_older_library_saved_it(tmp_path):
    """Fails if a pickle, or a model without a generation config or a tokenizer.json, loses its languages or tokens."""
    whisper(tmp_path / "source")
    folder = tmp_path / "source"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    for name in ("model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    made = to_ctranslate2(to_safetensors(resolve(str(folder)), tmp_path / "tensors"), tmp_path / "made")
    assert made.read_json("config.json")["lang_ids"] == [694, 695]
    check_model(made.directory, "en")
    again = {t["content"]: t["id"] for t in made.read_json("tokenizer.json")["added_tokens"]}
    assert {name: again.get(name) for name in LANGUAGES} == LANGUAGES


def test_whisper_with_a_tensor_missing_is_refused(tmp_path):
    """Fails if the converter's loader fills what is missing with random numbers."""
    whisper(tmp_path / "source", lang_to_id=LANGUAGES)
    state = load_file(tmp_path / "source" / "model.safetensors")
    del state["model.decoder.layers.1.fc1.weight"]
    save_file(state, tmp_path / "source" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 missing: model\.decoder\.layers\.1\.fc1\.weight"):
        to_ctranslate2(resolve(str(tmp_path / "source")), tmp_path / "made")


def test_whisper_without_its_tokenizer_is_refused(tmp_path):
    """Fails if what is missing beside the weights is a stack trace, or is fetched from a hub."""
    whisper(tmp_path / "source", lang_to_id=LANGUAGES)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "source" / name).unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        to_ctranslate2(resolve(str(tmp_path / "source")), tmp_path / "made")

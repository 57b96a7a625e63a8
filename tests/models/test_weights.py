"""Checkpoints: found, pinned, hashed, and loaded whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.hub import select_files
from pipeline.models.checkpoints.published import ASR_MODELS, DEFAULT_ASR, EMOTION_MODELS
from pipeline.models.checkpoints.weights import (
    Checkpoint,
    check,
    load_state_dict,
    load_strict,
    resolve,
    shapes_only,
)

ROOT = Path(__file__).parents[2]
OLD, NEW = "a" * 40, "b" * 40


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def written(
    folder: Path, state: dict[str, torch.Tensor], name: str = "model.safetensors", **config: object
) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return resolve(str(folder))


# --- which files


def test_tables():
    """Fails if a published id is lost, or faster-whisper renames a model that we still send to its old repository."""
    from faster_whisper.utils import _MODELS

    assert ASR_MODELS == _MODELS
    assert DEFAULT_ASR in ASR_MODELS
    assert len(EMOTION_MODELS) == 10
    assert EMOTION_MODELS["es", "mean"] == "UMUTeam/w2v-bert-beto-mean-emotion-es"


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["model.safetensors", "model.bin", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "training_args.bin"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["model.bin", "modeling_custom.py", "README.md"], ["model.bin"]),
    ],
)
def test_one_form_of_the_weights_is_taken(present, chosen):
    """Fails if gigabytes are fetched twice in two forms, or code from a repository is fetched at all."""
    assert select_files(["config.json", *present], "x") == ["config.json", *chosen]


@pytest.mark.parametrize(
    ("present", "said"), [(["model.bin"], "config.json is missing"), (["config.json"], "no weights")]
)
def test_what_is_no_checkpoint(tmp_path, present, said):
    """Fails if an empty or half-copied folder is taken for a model."""
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=said):
        resolve(str(tmp_path))


def test_sha256_is_of_what_decides_a_score(tmp_path):
    """Fails if a changed tokenizer keeps the hash, a README changes it, or one changed weight goes unseen."""
    state = linear().state_dict()
    first = written(tmp_path / "a", state)
    (tmp_path / "a" / "README.md").write_text("hello")
    assert resolve(str(tmp_path / "a")).sha256 == first.sha256
    assert written(tmp_path / "b", state).sha256 == first.sha256
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert resolve(str(tmp_path / "b")).sha256 != first.sha256
    state["0.bias"][0] += 1e-3
    assert written(tmp_path / "a", state).sha256 != first.sha256


def test_other_bytes_than_expected_are_refused(tmp_path):
    """Fails if a node whose copy differs from the driver's joins the job."""
    found = written(tmp_path / "a", linear().state_dict())
    assert resolve(found.spec, expected_sha256=found.sha256) == found
    with pytest.raises(ConfigError, match=f"{found.sha256}.*{'0' * 64}"):
        resolve(found.spec, expected_sha256="0" * 64)


def test_specs_that_are_directories(tmp_path, monkeypatch):
    """Fails if a relative folder that looks like a hub id, a file URI or a home path is looked up on the hub."""
    found = written(tmp_path / "org" / "name", linear().state_dict())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("org/name", "./org/name", "~/org/name", f"file://{tmp_path}/org/name", f"{tmp_path}/org/../org/name"):
        assert resolve(spec).directory == found.directory
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        resolve("./org/nane")


@pytest.mark.parametrize("spec", ["", "a/b/c", "no spaces allowed", "large-v3-turbo@", "big-v3-turbo", "org/"])
def test_specs_that_are_nothing(spec):
    """Fails if a typing error ends in a stack trace of the hub client instead of a sentence."""
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE|no such directory"):
        resolve(spec)


# --- tensors


def test_stored_in_half_precision(tmp_path):
    """Fails if fp16 weights run in fp16 on CPU, or integer buffers are turned into floats."""
    state = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2, dtype=torch.bfloat16), "ids": torch.arange(3)}
    loaded = load_state_dict(written(tmp_path, state))
    assert (loaded["a"].dtype, loaded["b"].dtype, loaded["ids"].dtype) == (torch.float32, torch.float32, torch.int64)
    assert load_state_dict(resolve(str(tmp_path)), dtype=torch.bfloat16)["a"].dtype == torch.bfloat16


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_tensors(tmp_path, legacy):
    """Fails if either of torch's file formats is not read."""
    folder, state = tmp_path / "m", linear().state_dict()
    written(folder, state, "model.bin")
    torch.save(state, folder / "model.bin", _use_new_zipfile_serialization=not legacy)
    loaded = load_state_dict(resolve(str(folder)))
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_sharded_weights(tmp_path):
    """Fails if a shard is left out, an absent one is not named, or an index can point outside its folder."""
    state = linear().state_dict()
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(state)}
    (tmp_path / "config.json").write_text("{}")
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in state.items() if files[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    checkpoint = resolve(str(tmp_path))
    loaded = load_state_dict(checkpoint)
    assert set(loaded) == set(state)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ConfigError, match=r"shards that are not there: \['../../etc/passwd'\]"):
        load_state_dict(checkpoint)


class Payload:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["torch", "pickle", "truncated", "empty", "text", "list"])
def test_a_hostile_or_damaged_pickle_is_refused_unrun(tmp_path, form):
    """Fails if `model.bin` runs code, or ends in an exception that is not a sentence for a person."""
    folder, marker = tmp_path / "m", tmp_path / "ran"
    written(folder, linear().state_dict(), "model.bin")
    path = folder / "model.bin"
    if form == "torch":
        torch.save({"a": Payload(marker)}, path)
    elif form == "list":
        torch.save([torch.ones(1)], path)
    else:
        content = {
            "pickle": pickle.dumps(Payload(marker), protocol=2),
            "truncated": path.read_bytes()[:700],
            "empty": b"",
        }
        path.write_bytes(content.get(form, b"version https://git-lfs.github.com/spec/v1\n"))
    with pytest.raises(ConfigError, match=r"model\.bin"):
        load_state_dict(resolve(str(folder)))
    assert not marker.exists()


def test_damaged_safetensors(tmp_path):
    """Fails if a truncated download loads."""
    checkpoint = written(tmp_path, linear().state_dict())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="damaged"):
        load_state_dict(checkpoint)


def loaders(tmp_path: Path, state: dict[str, torch.Tensor], **allowed: object) -> list:
    checkpoint = written(tmp_path / "m", state)
    return [
        lambda: check(checkpoint, linear, **allowed),
        lambda: load_strict(linear(), load_state_dict(checkpoint), source="m", **allowed),
    ]


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    """Fails if anything but the allowed is missing, extra or of another shape and the load goes on."""
    state = linear().state_dict()
    state["extra.weight"] = torch.ones(1)
    state["0.weight"] = torch.ones(3, 5)
    del state["1.bias"]
    for load in loaders(tmp_path, state):
        with pytest.raises(ConfigError) as caught:
            load()
        for said in ("missing: 1.bias", "unexpected: extra.weight", "0.weight has shape [3, 5], expected [3, 4]"):
            assert said in str(caught.value)


def test_allowed_differences(tmp_path):
    """Fails if the allow-list is not honoured, or lets a wrong shape through."""
    state = {**linear().state_dict(), "head.weight": torch.ones(1)}
    for load in loaders(tmp_path, state, allow_unexpected=["head.*"]):
        load()
    state["1.weight"] = torch.ones(7)
    with pytest.raises(ConfigError, match=r"1\.weight has shape"):
        load_strict(linear(), state, source="m", allow_unexpected=["*"])


def test_shapes_only(tmp_path):
    """Fails if a module made without values keeps a parameter on the meta device, or the compiler is imported for it."""
    with shapes_only():
        module = linear()
        torch.nn.init.kaiming_normal_(module[0].weight)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    load_strict(module, linear().state_dict(), source="m")
    assert module(torch.ones(1, 4)).isfinite().all()


def test_a_long_list_is_cut(tmp_path):
    """Fails if a wrong checkpoint fills the screen with names."""
    with pytest.raises(ConfigError, match="and 88 more") as caught:
        load_strict(linear(), {**linear().state_dict(), **{f"x{i}": torch.ones(1) for i in range(100)}}, source="m")
    assert len(str(caught.value)) < 400


def test_a_bert_as_the_hub_has_it(checkpoints, tmp_path):
    """Fails on google-bert's spelling: `bert.` before every name, LayerNorm.gamma and .beta, heads, an index buffer."""
    from pipeline.models.sentence import check_text_model, text_width

    folder = tmp_path / "m"
    shutil.copytree(checkpoints / "bert-en", folder)
    state = load_file(folder / "model.safetensors")
    hub_names = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
        if not name.startswith("pooler.")
    }
    heads = {"cls.predictions.bias": torch.ones(75), "cls.seq_relationship.weight": torch.ones(2, 768)}
    buffer = {"bert.embeddings.position_ids": torch.arange(512)[None]}
    save_file({**hub_names, **heads, **buffer}, folder / "model.safetensors")
    check_text_model(resolve(str(folder)), classify=False)
    assert text_width(resolve(str(folder))) == 768
    save_file({**hub_names, "bert.embeddings.LayerNorm.weight": torch.ones(768)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="under two names"):
        check_text_model(resolve(str(folder)), classify=False)

"""Conversion of the demo's Whisper from its CTranslate2 file to Hugging Face form, which the reference toolkit needs.

The file's layout and the names in it are those of CTranslate2's Whisper converter, turned round; converting what comes out
must give the same file again, byte for byte.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizerFast

from benchmarks.harness import RESULTS, ROOT
from benchmarks.workload import require
from demo.models import MODELS
from tools.demo_models import whisper_export, whisper_train
from tools.demo_models import whisper_vocabulary as vocabulary

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
_FUSED = {
    "self_attention/linear_0": ("q", "k", "v"),
    "self_attention/linear_1": ("out",),
    "attention/linear_0": ("q",),
    "attention/linear_1": ("k", "v"),
    "attention/linear_2": ("out",),
}


def hugging_face_whisper() -> Path:
    """Return the folder, created at first use."""
    folder, demo = RESULTS / "whisper", ROOT / MODELS / "whisper"
    if not (folder / "tokenizer_config.json").exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model = _model(_variables(demo / "model.bin"))
        with tempfile.TemporaryDirectory() as again:
            whisper_export.write(model, Path(again))
            same = (Path(again) / "model.bin").read_bytes() == (demo / "model.bin").read_bytes()
        require(same, "the demo's Whisper, read back and converted again, is another file")
        whisper_export.save(model, partial)
        _give_whispers_own_tokenizer(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def _variables(path: Path) -> dict[str, np.ndarray]:
    content, at = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return int(value)

    def take_text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return content[at - length : at].rstrip(b"\0").decode()

    take("I"), take_text(), take("I")
    variables = {}
    for _ in range(take("I")):
        name = take_text()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = _DTYPES[take("B")], take("I")
        variables[name] = np.frombuffer(content[at : at + size], dtype).reshape(shape)
        at += size
    return variables


def _model(variables: dict[str, np.ndarray]) -> WhisperForConditionalGeneration:
    model = whisper_train.build(0)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for name, value in variables.items():
        if value.ndim:
            for ours, part in _renamed(name, torch.from_numpy(value.astype(np.float32))):
                require(state[ours].shape == part.shape, f"{name} does not fit {ours}")
                state[ours] = part
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def _renamed(name: str, value: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    side, _, rest = name.partition("/")
    kind = rest.rpartition("/")[2].replace("gamma", "weight").replace("beta", "bias")
    if rest.startswith("layer_") and not rest.startswith("layer_norm"):
        number, part, which = rest.removeprefix("layer_").split("/")[:3]
        layer = f"model.{side}.layers.{number}"
        if part == "ffn":
            inner = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[which]
            return [(f"{layer}.{inner}.{kind}", value)]
        attention = f"{layer}.{_ATTENTION[part]}"
        if which == "layer_norm":
            return [(f"{attention}_layer_norm.{kind}", value)]
        names = _FUSED[f"{part}/{which}"]
        parts = zip(names, value.chunk(len(names)), strict=True)
        # Whisper's keys have no bias; the converter writes zeros
        return [(f"{attention}.{n}_proj.{kind}", p) for n, p in parts if (n, kind) != ("k", "bias")]
    top = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
    outer = rest.split("/")[0]
    return [(f"model.{side}.{top.get(outer, outer)}.{kind.replace('encodings', 'weight')}", value)]


def _give_whispers_own_tokenizer(folder: Path) -> None:
    """Return the tokenizer class by which transformers' speech pipeline joins words."""
    end = vocabulary.END
    tokenizer = WhisperTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), unk_token=end, bos_token=end, eos_token=end, pad_token=end
    )
    WhisperProcessor(whisper_export.WhisperFeatureExtractor.from_pretrained(folder), tokenizer).save_pretrained(folder)

"""Made-up models in the layouts that onnx-asr reads: they show the wiring, and know no language."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WORDS = ("▁one", "▁two", "▁three", "▁four", "▁five", "▁six", "▁seven")
_PROMPT = ("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|es|>", "<|pnc|>",
           "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>", "<|endoftext|>")  # fmt: skip
_BINS, _STRIDE = 80, 64


def parakeet(folder: Path, *, graph: str = "model.onnx", seed: int = 3) -> Path:
    """Make a model with CTC: random weights from the means of 0.64 s to one of seven words or none."""
    weights = np.random.default_rng(seed).normal(size=(_BINS, len(WORDS) + 1)).astype(np.float32)
    weights[:, -1] *= 2  # silence between words
    nodes = [
        helper.make_node(
            "AveragePool", ["audio_signal"], ["means"], kernel_shape=[_STRIDE], strides=[_STRIDE], ceil_mode=1
        ),
        helper.make_node("Transpose", ["means"], ["by_frame"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["by_frame", "weights"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["logprobs"], axis=-1),
    ]
    made = helper.make_graph(
        nodes, "ctc", [_floats("audio_signal", "batch", _BINS, "frames"), _integers("length", "batch")],
        [_floats("logprobs", "batch", "steps", len(WORDS) + 1)], [numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    return _folder(folder, "nemo-conformer-ctc", {graph: made}, (*WORDS, "<blk>"))


def canary(folder: Path) -> Path:
    """Make a model with a decoder that says hello when it is told English, and hola when it is told Spanish."""
    tokens = (*_PROMPT, "▁hello", "▁hola")
    number = {token: i for i, token in enumerate(tokens)}
    following = np.zeros((len(tokens), len(tokens)), np.float32)
    following[:, number["<|endoftext|>"]] = 1
    told = np.zeros_like(following)
    told[number["<|en|>"], number["▁hello"]] = told[number["<|es|>"], number["▁hola"]] = 5
    zeros = np.zeros((1, 1, 1, 4), np.float32)
    encoder = helper.make_graph(
        [
            helper.make_node("AveragePool", ["audio_signal"], ["means"], kernel_shape=[_STRIDE], strides=[_STRIDE], ceil_mode=1),
            helper.make_node("Transpose", ["means"], ["encoder_embeddings"], perm=[0, 2, 1]),
            helper.make_node("Unsqueeze", ["length", "axis"], ["encoder_mask"]),
        ],
        "encoder", [_floats("audio_signal", "batch", _BINS, "frames"), _integers("length", "batch")],
        [_floats("encoder_embeddings", "batch", "steps", _BINS), _integers("encoder_mask", "batch", "one")],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    decoder = helper.make_graph(
        [
            helper.make_node("Gather", ["following", "input_ids"], ["next"]),
            helper.make_node("Gather", ["told", "input_ids"], ["by_language"]),
            helper.make_node("ReduceMax", ["by_language", "axis"], ["language"], keepdims=1),
            helper.make_node("Add", ["next", "language"], ["logits"]),
            helper.make_node("Identity", ["zeros"], ["decoder_hidden_states"]),
        ],
        "decoder",
        [_integers("input_ids", "batch", "length"), _floats("encoder_embeddings", "batch", "steps", _BINS),
         _integers("encoder_mask", "batch", "one"), _floats("decoder_mems", 1, "batch", "past", 4)],
        [_floats("logits", "batch", "length", len(tokens)), _floats("decoder_hidden_states", 1, 1, 1, 4)],
        [numpy_helper.from_array(following, "following"), numpy_helper.from_array(told, "told"),
         numpy_helper.from_array(zeros, "zeros"), numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    graphs = {"encoder-model.onnx": encoder, "decoder-model.onnx": decoder}
    return _folder(folder, "nemo-conformer-aed", graphs, tokens)


def vosk(folder: Path) -> Path:
    """Make the files of a model in folders; its graphs are not graphs, so that it can be stored but not loaded."""
    for name in ("am-onnx/encoder.onnx", "am-onnx/decoder.onnx", "am-onnx/joiner.onnx", "lang/tokens.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "config.json").write_text(json.dumps({"model_type": "vosk"}))
    return folder


def clip(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return noise of changing loudness, in which the made-up models find words."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.5, 1 + int(seconds * 4)), 4000)[: int(seconds * 16_000)]
    noise: NDArray[np.float32] = (loudness * rng.normal(size=len(loudness))).astype(np.float32)
    return noise


def _folder(folder: Path, model_type: str, graphs: dict[str, onnx.GraphProto], tokens: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "subsampling_factor": _STRIDE}))
    (folder / "vocab.txt").write_text("".join(f"{token} {i}\n" for i, token in enumerate(tokens)), encoding="utf-8")
    for name, graph in graphs.items():
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, folder / name)
    return folder


def _floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _integers(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

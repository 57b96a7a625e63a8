"""Speaker models (`--speakers`): the files they come from, and the pins of plans.

Weights are those of Resemblyzer, from the installed package or a copy of its file: the network is ours
(`pipeline.models.networks.ge2e`), so none of the package's code or dependencies is used. Or `onnx:FILE`, any model that takes
windows of audio, float32 [N, 25600] at 16 kHz, and returns embeddings, float32 [N, D].
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, JobError
from pipeline.pins import ModelPin, Role, Task

SPEAKER = Role(Task.SPEAKER, "all")
"""Role of the speaker model, which is the same for every language."""
PACKAGE = "resemblyzer"
_FILE = "pretrained.pt"
_ONNX = "onnx:"
_CLUSTERING = "sklearn"
WINDOW = 25_600
"""Samples of a window: 1.6 s."""
_WINDOWS_AT_ONCE = 64


class Encoder(Protocol):
    """A speaker model."""

    def embed(self, waveform: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return unit vectors [N, D] of the windows of a waveform that begin at `starts`."""


class OnnxEncoder:
    """A speaker model in ONNX form, on one CPU thread.

    Raises: ConfigError when the file is no ONNX model of one input of two dimensions and one output.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            (given,), (_,) = self._session.get_inputs(), self._session.get_outputs()
            width = self._run(given.name, np.zeros((2, WINDOW), np.float32)).shape
        # onnxruntime's errors derive from Exception alone
        except _onnx_errors() as error:
            raise ConfigError(
                f"{path} is no speaker model that takes audio [N, {WINDOW}]: {str(error)[:200]}"
            ) from error
        if len(width) != 2 or width[0] != 2:
            raise ConfigError(f"{path} returns {list(width)} for 2 windows; [2, D] is expected")
        self._name = given.name

    def embed(self, waveform: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed windows of a waveform, float32 [num_samples]; a window beyond its end is filled with zeros."""
        padded = np.pad(waveform, (0, WINDOW))
        found = []
        for first in range(0, len(starts), _WINDOWS_AT_ONCE):
            windows = np.stack([padded[start : start + WINDOW] for start in starts[first : first + _WINDOWS_AT_ONCE]])
            found.append(self._run(self._name, windows.astype(np.float32)))
        vectors = np.concatenate(found)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)

    def _run(self, name: str, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {name: windows})[0])


def _onnx_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
        ValueError,
        TypeError,
    )


def pin_speaker_model(spec: str) -> ModelPin:
    """Pin a speaker model: `resemblyzer`, a file of its weights, or `onnx:FILE`.

    Raises: ConfigError when the file or scikit-learn is missing, or the file has other contents.
    """
    if importlib.util.find_spec(_CLUSTERING) is None:
        raise ConfigError("speakers are clustered by scikit-learn: pip install 'speech-emotion-pipeline[speakers]'")
    path = _path(spec)
    content = path.read_bytes()
    _encoder(spec, path)
    return ModelPin(spec, None, hashlib.sha256(content).hexdigest(), len(content))


@lru_cache(maxsize=1)
def speaker_encoder(pin: ModelPin) -> Encoder:
    """Return the model that a plan pinned; loaded once per process. Raises: JobError when this node has other files."""
    try:
        path = _path(pin.spec)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != pin.sha256:
            raise ConfigError(f"{path} has sha256 {sha256[:12]}, the plan's has {pin.sha256[:12]}")
        return _encoder(pin.spec, path)
    except ConfigError as error:
        raise JobError(f"--speaker-model {pin.spec}: {error}") from error


def _path(spec: str) -> Path:
    if spec != PACKAGE:
        path = Path(spec.removeprefix(_ONNX))
        if not path.is_file():
            raise ConfigError(f"{spec} is neither {PACKAGE} nor a file of its weights, nor onnx: and a file")
        return path
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.4")
    return Path(found.submodule_search_locations[0], _FILE)


def _encoder(spec: str, path: Path) -> Encoder:
    if spec.startswith(_ONNX):
        return OnnxEncoder(path)
    import torch

    from pipeline.models.networks.ge2e import SpeakerEncoder

    try:
        return SpeakerEncoder(torch.load(path, map_location="cpu", weights_only=True)["model_state"])
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} has no weights of Resemblyzer's speaker encoder: {type(error).__name__}") from error

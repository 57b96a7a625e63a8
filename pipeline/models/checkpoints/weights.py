"""Checkpoint resolution and strict loading of weights.

`resolve` turns a hub id, a directory or an object-store URI into files on this node's disk and their SHA-256;
`load_strict` loads them into a module or reports which tensors do not fit. Pickles are read only with torch's
`weights_only` unpickler, and no code that comes with a checkpoint is run. Hashing costs about 1.7 s for the 2.3 GB
of a published model, once per process; safetensors are mapped, not read, so processes of one node share their pages.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import ConfigError, did_you_mean
from pipeline.models.checkpoints import onnx
from pipeline.models.checkpoints.cache import cache_folder
from pipeline.models.checkpoints.hub import fetch_from_hub, fetch_from_store, refuse_other_files, select_files
from pipeline.models.checkpoints.published import ASR_MODELS, EMOTION_MODELS, SENTENCE_ENCODERS

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
_NAMES_SHOWN = 12
_OLD_NAMES = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
    "classifier.output.weight": "classifier.out_proj.weight",
    "classifier.output.bias": "classifier.out_proj.bias",
}
"""Endings of tensor names in some checkpoints, and those of the modules here."""

_UNPICKLING = (
    *(pickle.UnpicklingError, struct.error, EOFError, RuntimeError, OSError, ValueError, TypeError),
    *(LookupError, AttributeError, AssertionError, ArithmeticError, zipfile.BadZipFile),
)
"""Exceptions of torch's unpickler for damaged bytes, found by experiment."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this node.

    Attributes:
        spec: the model id that the caller gave.
        directory: the folder of the files.
        revision: the hub commit of the files; None for directories and object stores.
        sha256: over names and contents of config, tokenizer, feature extractor and weights: equal means equal scores.
        location: where another node finds the same files, when that is not `spec`.
    """

    spec: str
    directory: Path
    revision: str | None
    sha256: str
    location: str | None = None

    def read_json(self, name: str) -> dict[str, Any]:
        """Parse one of the JSON files. Raises: ConfigError when it is missing or not a JSON object."""
        try:
            parsed = json.loads((self.directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.directory / name} of model {self.spec} cannot be read: {error}") from error
        if not isinstance(parsed, dict):
            raise ConfigError(f"{self.directory / name} of model {self.spec} is not a JSON object")
        return parsed


def resolve(spec: str, *, cache_dir: Path | None = None, expected_sha256: str | None = None) -> Checkpoint:
    """Find a checkpoint and bring its files to this node.

    Args:
        spec: a directory, a hub id `org/name`, `org/name@revision` (branch, tag or commit), one of faster-whisper's
            names, or an object-store URI of a folder such as `s3://bucket/models/x`. An existing directory has
            precedence. `onnx:` before a directory or URI: see `pipeline.models.checkpoints.onnx`.
        cache_dir: folder of downloads; None means the hub library's cache, and `~/.cache/speech-emotion-pipeline`.
        expected_sha256: `Checkpoint.sha256` on another node, for example the driver; any other value is rejected.
    Raises: ConfigError that names the model id and states what to do.
    """
    if onnx.is_onnx(spec):
        directory, sha256 = onnx.resolve(spec, cache_dir, expected_sha256)
        return Checkpoint(spec, directory, None, sha256)
    directory, revision = _locate(spec, cache_dir, expected_sha256)
    return Checkpoint(spec, directory, revision, refuse_other_files(spec, directory, expected_sha256))


def files_of(checkpoint: Checkpoint) -> list[Path]:
    """Return the files of a checkpoint's folder; of one for onnx-asr, those that are used."""
    if onnx.is_onnx(checkpoint.spec):
        names = onnx.file_names(checkpoint.directory, onnx.split(checkpoint.spec)[1])
        return [checkpoint.directory / name for name in names]
    return [entry for entry in checkpoint.directory.iterdir() if entry.is_file()]


def _locate(spec: str, cache_dir: Path | None, expected_sha256: str | None) -> tuple[Path, str | None]:
    if spec.startswith("file://"):
        spec = unquote(urlsplit(spec).path)
    if "://" in spec:
        cache_dir = (cache_dir or cache_folder()) / "checkpoints"
        return fetch_from_store(spec, cache_dir, expected_sha256=expected_sha256), None
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return path.resolve(), None
    hub_cache = cache_dir / "hub" if cache_dir else None
    name, _, revision = spec.partition("@")
    if name in ASR_MODELS:
        return fetch_from_hub(ASR_MODELS[name], revision or None, hub_cache)
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id and not spec.startswith(("./", "../", "~")):
        try:
            return fetch_from_hub(hub_id["repo"], hub_id["revision"], hub_cache)
        except ConfigError as error:
            published = {*EMOTION_MODELS.values(), *SENTENCE_ENCODERS.values(), *ASR_MODELS.values()}
            hint = "" if hub_id["repo"] in published else did_you_mean(hub_id["repo"], published)
            raise ConfigError(f"model {spec!r} is neither a directory here nor on the hub: {error}{hint}") from error
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    raise ConfigError(
        f"model {spec!r}: no such directory, and not a hub id (org/name or org/name@revision), a URI or one of "
        f"faster-whisper's names{did_you_mean(path.name, [*siblings, *ASR_MODELS])}"
    )


def load_state_dict(checkpoint: Checkpoint, *, dtype: torch.dtype | None = torch.float32) -> dict[str, Tensor]:
    """Load all tensors of a checkpoint on CPU, floating-point ones converted to `dtype`; None keeps their types.

    Safetensors of that dtype are mapped private to the process: pages are shared until written, and nothing writes
    them. Raises: ConfigError for a damaged file, or a pickle with anything but tensors, none of which is executed.
    """
    state: dict[str, Tensor] = {}
    for path in _weight_files(checkpoint):
        for name, tensor in _read(path, checkpoint).items():
            if name in state:
                raise ConfigError(f"model {checkpoint.spec} has tensor {name} twice; the second is in {path.name}")
            state[name] = tensor.to(dtype) if tensor.is_floating_point() and dtype else tensor
    return state


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    names = [entry.name for entry in checkpoint.directory.iterdir() if entry.is_file()]
    weights = [n for n in select_files(names, checkpoint.spec) if n.endswith((".safetensors", ".bin", ".index.json"))]
    if not weights[0].endswith(".index.json"):
        return [checkpoint.directory / weights[0]]
    shards = set(checkpoint.read_json(weights[0]).get("weight_map", {}).values())
    absent = sorted(shards - set(names))  # names from the index are compared, and never opened unchecked
    if absent or not shards:
        raise ConfigError(
            f"{weights[0]} of model {checkpoint.spec} names shards that are not there: {absent or 'none'}"
        )
    return [checkpoint.directory / name for name in sorted(shards)]


def _read(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"{path} of model {checkpoint.spec} is damaged: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNPICKLING as error:
        raise ConfigError(
            f"{path} of model {checkpoint.spec} was refused, and nothing in it was run: it is damaged, or a pickle "
            f"of more than plain tensors; use a safetensors file ({str(error).splitlines()[0][:200] if str(error) else ''})"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ConfigError(f"{path} of model {checkpoint.spec} is not a state dict (names to tensors)")
    return dict(loaded)


class _Uninitialised(TorchFunctionMode):
    """Mode that skips parameter initialisation, which on the meta device would import half of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's protocol
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Create modules whose parameters have shapes but no memory or values, for `load_strict` to fill."""
    with torch.device("meta"), _Uninitialised():
        yield


@contextmanager
def without_values() -> Iterator[None]:
    """Create modules on CPU with uninitialised parameters, for `load_strict` to fill, and with computed buffers.

    For modules with buffers that no checkpoint contains. Memory of a parameter is not touched before it is replaced.
    """
    with _Uninitialised():
        yield


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_unexpected: Sequence[str] = (),
    base_prefix: str | None = None,
) -> None:
    """Assign exactly the tensors of a checkpoint to a module's parameters, without a copy.

    Args:
        source: name of the checkpoint in messages.
        allow_unexpected: patterns (`pooler.*`) of tensors that the checkpoint may also contain.
        base_prefix: prefix such as `bert.`, stripped from names when the module is the base model of a checkpoint
            with heads.
    Raises: ConfigError that names every tensor that is missing, extra or of another shape (both shapes).
    """
    expected = module.state_dict()
    renamed = _rename(state, expected, base_prefix, source)
    _refuse_differences(_shapes(expected), _shapes(renamed), allow_unexpected, source)
    module.load_state_dict({name: renamed[name] for name in expected}, assign=True)
    module.requires_grad_(False)


def check(
    checkpoint: Checkpoint,
    build: Callable[[], nn.Module],
    *,
    allow_unexpected: Sequence[str] = (),
    base_prefix: str | None = None,
) -> None:
    """Check that `load_strict` would succeed, without memory for the weights.

    Reads headers of safetensors and maps pickles, so it takes seconds at most at the published size.
    Raises: ConfigError as `load_strict` and `load_state_dict` do.
    """
    with shapes_only():
        expected = build().state_dict()
    found: dict[str, Tensor] = {}
    for path in _weight_files(checkpoint):
        found.update(_read(path, checkpoint))  # mapped: only headers are read
    renamed = _rename(found, expected, base_prefix, checkpoint.spec)
    _refuse_differences(_shapes(expected), _shapes(renamed), allow_unexpected, checkpoint.spec)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _rename(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], base_prefix: str | None, source: str
) -> dict[str, Tensor]:
    """Rename tensors to today's transformers names, from the old spellings that its own loader also accepts.

    `LayerNorm.gamma` and `.beta` come from the TensorFlow BERTs, `weight_g` and `weight_v` from torch's weight norm
    before 2.0 (`conversion_mapping.py`, transformers 5.23). `classifier.output` is ehcalabres' name of a head's last
    layer.
    """
    strip = base_prefix if base_prefix and not any(name.startswith(base_prefix) for name in expected) else None
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name.removeprefix(strip) if strip else name
        for old, current in _OLD_NAMES.items():
            if new.endswith(old) and new.removesuffix(old) + current in expected:
                new = new.removesuffix(old) + current
        if new in renamed:
            raise ConfigError(f"model {source} has tensor {new} under two names, one of them {name}")
        renamed[new] = tensor
    return renamed


def _refuse_differences(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    allow_unexpected: Sequence[str],
    source: str,
) -> None:
    misshapen = [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(
            name for name in set(found) - set(expected) if not any(fnmatchcase(name, like) for like in allow_unexpected)
        ),
        "misshapen": misshapen,
    }
    faults = [
        f"{len(names)} {kind}: {'; '.join(names[:_NAMES_SHOWN])}"
        + (f"; and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
        for kind, names in problems.items()
        if names
    ]
    if faults:
        raise ConfigError(f"the weights of model {source} do not fit its config. {'. '.join(faults)}")

"""Folders of speech recognisers that the library onnx-asr runs: `onnx:DIR`, and `onnx:DIR@int8` for quantised files.

The library chooses the kind of model by `model_type` in config.json, and knows the names of its files. A pin covers every
file of the folder, because a graph may keep weights in files of any name, except hidden files, Markdown, and the graphs
that are not used with the weights named after them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.cache import cache_folder
from pipeline.models.checkpoints.hub import fetch_from_store, file_sha256, refuse_other_files

PREFIX = "onnx:"
_GRAPHS = (".onnx", ".ort")
_LANGUAGE_TOKENS = {
    "whisper": "added_tokens.json",
    "whisper-ort": "added_tokens.json",
    "whisper-base": "added_tokens.json",
    "nemo-conformer-aed": "vocab.txt",
    "nemo-canary-1b-v2": "vocab.txt",
}
"""Kinds of models that are told the language, and the file that has a token `<|en|>` for each that they know."""


def is_onnx(spec: str) -> bool:
    """Return whether a model id names a folder for onnx-asr."""
    return spec.startswith(PREFIX)


def within(spec: str, location: str) -> str:
    """Return the model id of a copy of a model's files at `location`."""
    if not is_onnx(spec):
        return location
    _, quantisation = split(spec)
    return f"{PREFIX}{location}" + (f"@{quantisation}" if quantisation else "")


def split(spec: str) -> tuple[str, str | None]:
    """Return the folder of a model id, and what follows its last @: the quantisation, or None."""
    place = spec.removeprefix(PREFIX)
    folder, at, quantisation = place.rpartition("@")
    folder, quantised = (folder, quantisation) if at and "/" not in quantisation else (place, None)
    return unquote(urlsplit(folder).path) if folder.startswith("file://") else folder, quantised


def is_installed() -> bool:
    """Return whether the library is installed, without importing it."""
    return importlib.util.find_spec("onnx_asr") is not None


def check_installed() -> None:
    """Check that the library is installed. Raises: ConfigError."""
    if not is_installed():
        raise ConfigError("this needs the library onnx-asr: pip install 'speech-emotion-pipeline[onnx]'")


def check_local(spec: str, language: str) -> None:
    """Check a model in a local folder by the names of its files; one in an object store is checked when it is fetched.

    Raises: ConfigError when the library is missing, or does not know the folder, or the model not the language.
    """
    check_installed()
    place, quantisation = split(spec)
    if "://" not in place:
        file_names(_local(place), quantisation)
        check_language(_local(place), language)


def resolve(spec: str, cache_dir: Path | None, expected_sha256: str | None) -> tuple[Path, str]:
    """Bring the files of a model id to this node.

    Args:
        cache_dir, expected_sha256: as `weights.resolve` takes them.
    Returns: the folder, and the sha256 over names and contents of its files.
    Raises: ConfigError when the library is missing, or the folder is not one that it knows or has other files.
    """
    check_installed()
    place, quantisation = split(spec)

    def sha256_of(folder: Path) -> str:
        whole = hashlib.sha256()
        for name in file_names(folder, quantisation):
            whole.update(f"{name}\0{file_sha256(folder / name)}\n".encode())
        return whole.hexdigest()

    if "://" in place:
        cache_dir = (cache_dir or cache_folder()) / "checkpoints"
        directory = fetch_from_store(
            place, cache_dir, expected_sha256=expected_sha256, select=_relevant, sha256_of=sha256_of
        )
    else:
        directory = _local(place)
    return directory, refuse_other_files(spec, directory, expected_sha256, sha256_of)


def file_names(folder: Path, quantisation: str | None) -> list[str]:
    """Return the sorted relative names of the files that determine a model's texts: see the module.

    Raises: ConfigError when onnx-asr does not know the folder.
    """
    from onnx_asr.loader import create_asr_resolver
    from onnx_asr.utils import ModelLoadingError

    try:
        used = set(create_asr_resolver(model_type_of(folder), folder).resolve_model(quantization=quantisation).values())
    except ModelLoadingError as error:
        graphs = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in _GRAPHS)
        advice = "" if quantisation else "; @int8 after the folder chooses files such as model.int8.onnx"
        raise ConfigError(f"onnx-asr: {error} Its graphs: {', '.join(graphs) or 'none'}{advice}") from error
    used_names = {path.relative_to(folder).as_posix() for path in used}
    names = _relevant(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), str(folder)
    )
    unused = tuple(name for name in names if name.endswith(_GRAPHS) and name not in used_names)
    return sorted(name for name in names if name in used_names or not name.startswith(unused))


def check_language(folder: Path, language: str) -> None:
    """Check that a model that is told the language knows this one. Raises: ConfigError."""
    known = languages_of(folder)
    if known is not None and language not in known:
        raise ConfigError(f"{folder} does not support language {language!r}")


def languages_of(folder: Path) -> frozenset[str] | None:
    """Return the languages that a model can be told; None for one that transcribes whatever language it was trained on."""
    file = _LANGUAGE_TOKENS.get(model_type_of(folder))
    if file is None:
        return None
    try:
        text = (folder / file).read_text(encoding="utf-8")
        tokens = json.loads(text) if file.endswith(".json") else [line.rpartition(" ")[0] for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / file} cannot be read: {error}") from error
    return frozenset(token[2:-2] for token in tokens if token.startswith("<|") and token.endswith("|>"))


def _local(place: str) -> Path:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"no such directory: {place}. onnx: takes a directory or an object-store URI; download a model of the hub first, "
            "as in hf download istupakov/parakeet-tdt-0.6b-v3-onnx --local-dir DIR"
        )
    return folder.resolve()


def model_type_of(folder: Path) -> str:
    """Return the `model_type` of config.json. Raises: ConfigError when there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read, from which onnx-asr takes model_type: {error}"
        ) from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise ConfigError(
            f"{folder / 'config.json'} has no model_type, such as nemo-conformer-tdt, that onnx-asr knows"
        )
    return model_type


def _relevant(names: Iterable[str], where: str) -> list[str]:
    present = set(names)
    if "config.json" not in present:
        raise ConfigError(f"{where} is not a model: config.json is missing")
    return [
        name
        for name in present
        if not name.endswith(".md") and not any(part.startswith(".") for part in name.split("/"))
    ]

"""Conversion of checkpoints to the forms the job loads: pickles to safetensors, Whisper to CTranslate2.

Needs memory for the whole model. Equal files and library versions produce equal bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.cache import cache_folder, made_once
from pipeline.models.checkpoints.hub import SIDE_FILES, WEIGHTS
from pipeline.models.checkpoints.weights import Checkpoint, check, load_state_dict, resolve

_START = "<|startoftranscript|>"
_TIED = ("proj_out.weight",)
"""Whisper's output layer, which equals its token embedding and is stored in some checkpoints only."""


def is_pickled(checkpoint: Checkpoint) -> bool:
    """Return whether the weights to load are a pickle. Do not call it for CTranslate2's `model.bin`."""
    names = {entry.name for entry in checkpoint.directory.iterdir()}
    return next(name for name in WEIGHTS if name in names).startswith(("pytorch_model.bin", "model.bin"))


def is_transformers_whisper(checkpoint: Checkpoint) -> bool:
    """Return whether this is Whisper in Hugging Face form; CTranslate2's config names no model type."""
    return checkpoint.read_json("config.json").get("model_type") == "whisper"


def to_safetensors(checkpoint: Checkpoint, target: Path) -> Checkpoint:
    """Write a pickled checkpoint into the new folder `target` as safetensors: the same names, types and values.

    Read with torch's `weights_only` unpickler, which runs no code of the file. Raises: ConfigError for a pickle that
    contains more than tensors.
    """
    from safetensors.torch import save_file

    target.mkdir(parents=True)
    for name in SIDE_FILES:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, target / name)
    tensors = _unshared(load_state_dict(checkpoint, dtype=None))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return resolve(str(target))


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own, as safetensors requires; tied weights of a pickle share theirs."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        own[name] = (
            tensor if whole and storage.data_ptr() not in seen else tensor.clone(memory_format=torch.contiguous_format)
        )
        seen.add(storage.data_ptr())
    return own


def to_ctranslate2(checkpoint: Checkpoint, target: Path) -> Checkpoint:
    """Convert a Whisper in Hugging Face form (safetensors) into the new folder `target`, weights in float16.

    The ready-made faster-whisper repositories also contain float16; a job converts it to its own
    `--asr-compute-type`. Raises: ConfigError when a tensor is missing, extra or misshapen, or the tokenizer or
    feature extractor is missing.
    """
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = WhisperConfig.from_dict(checkpoint.read_json("config.json"))

    def untied() -> nn.Module:
        model: Any = WhisperForConditionalGeneration(config)
        del model.proj_out
        whisper: nn.Module = model
        return whisper

    # the converter's loader would fill missing tensors with random numbers
    check(checkpoint, untied, allow_unexpected=_TIED)
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(checkpoint.directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(f"the tokenizer or feature extractor cannot be loaded: {error}") from error
    # without its files transformers 5 silently creates a tokenizer that knows no words
    if tokenizer.get_vocab().get(_START) != config.decoder_start_token_id:
        raise ConfigError(
            f"its tokenizer does not have {_START} as token {config.decoder_start_token_id}; check that its files are complete"
        )
    if extractor.feature_size != config.num_mel_bins:
        raise ConfigError(
            f"its features have {extractor.feature_size} mel bins, but its encoder expects {config.num_mel_bins}"
        )
    TransformersConverter(str(checkpoint.directory)).convert(str(target), quantization="float16")
    extractor.save_pretrained(target)
    if (checkpoint.directory / "tokenizer.json").is_file():
        shutil.copyfile(checkpoint.directory / "tokenizer.json", target / "tokenizer.json")
    else:
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    _name_languages(target, tokenizer)
    try:
        ctranslate2.models.Whisper(str(target), device="cpu", compute_type="float32")
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the converted model does not load: {error}") from error
    return resolve(str(target))


def needs_conversion(checkpoint: Checkpoint) -> bool:
    """Return whether this is Whisper in Hugging Face form without CTranslate2's weights beside it."""
    return is_transformers_whisper(checkpoint) and not (checkpoint.directory / "model.bin").is_file()


def converted_whisper(source: Checkpoint, *, cache_dir: Path | None = None) -> Checkpoint:
    """Return a Whisper in Hugging Face form as CTranslate2, converted once per node and library version into the cache.

    Args:
        cache_dir: default: `~/.cache/speech-emotion-pipeline`.
    Returns: the converted files and their own sha256, with the model id and the commit of the source.
    Raises: ConfigError as `to_ctranslate2`, and for a full disk.
    """
    libraries = hashlib.sha256(versions("ctranslate2", "transformers", "torch", "safetensors").encode()).hexdigest()
    parent = (cache_dir or cache_folder()) / "converted"

    def make(work: Path) -> Path:
        plain = to_safetensors(source, work / "safetensors") if is_pickled(source) else source
        return to_ctranslate2(plain, work / "ctranslate2").directory

    try:
        folder = made_once(parent, source.sha256[:32], libraries[:16], make)
    except OSError as error:
        raise ConfigError(f"cannot convert it in {parent}: {error}; XDG_CACHE_HOME sets another place") from error
    return replace(resolve(str(folder)), spec=source.spec, revision=source.revision)


def _name_languages(converted: Path, tokenizer: Any) -> None:  # noqa: ANN401 - transformers ships no types
    """Add the ids of the language tokens to the converted config when no generation config provides them.

    The converter looks for them in a tokenizer attribute that transformers 5 no longer has (ctranslate2 4.8);
    without them no language is detected.
    """
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    path = converted / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer.get_vocab()
    if not config.get("lang_ids"):
        config["lang_ids"] = sorted(vocabulary[t] for code in _LANGUAGE_CODES if (t := f"<|{code}|>") in vocabulary)
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def versions(*packages: str) -> str:
    """Return the package versions that determine a conversion's output, besides the files."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)

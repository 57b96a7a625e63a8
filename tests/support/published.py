"""The English models of mode mean as a hub would hold them, made from the demo's: under their published names, the fusion model
as a pickle without class names, and a Whisper in Hugging Face form with random weights.
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from demo.models import MODELS
from pipeline.models.checkpoints.lock import Prepared, read_prepared
from pipeline.models.checkpoints.weights import load_state_dict, resolve
from tests.support.corpus import ROOT
from tests.support.hub_standin import Repository

FUSION = "UMUTeam/w2v-bert-beto-mean-emotion-en"
ENCODER = "google-bert/bert-base-uncased"
ASR = "mobiuslabsgmbh/faster-whisper-large-v3-turbo"
HF_WHISPER = "org/whisper"
OLD, NEW = "a" * 40, "b" * 40


def _files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((ROOT / MODELS / name).iterdir())}


def fusion_tensors() -> dict[str, torch.Tensor]:
    """Return the tensors of the fusion model, as they are stored."""
    return load_state_dict(resolve(str(ROOT / MODELS / "mean-en")), dtype=None)


@cache
def _fusion() -> dict[str, bytes]:
    files = {name: content for name, content in _files("mean-en").items() if "safetensors" not in name}
    config = json.loads(files["config.json"])
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(7)}
    pickle = io.BytesIO()
    torch.save(fusion_tensors(), pickle)
    card = b"---\nlicense: other\nlicense_name: research-only\n---\n# A model\n"
    return files | {
        "config.json": json.dumps(config).encode(),
        "model.bin": pickle.getvalue(),
        "README.md": card,
        "modeling_evil.py": b"raise SystemExit",
    }


def hub() -> dict[str, Repository]:
    """Return repositories whose `main` is the commit OLD."""
    repositories = {FUSION: _fusion(), ENCODER: _files("sentence-encoder"), ASR: _files("whisper")}
    repositories[ENCODER] |= {"README.md": b"---\nlicense: apache-2.0\n---\n"}
    return {name: Repository({OLD: dict(files)}, {"main": OLD}) for name, files in repositories.items()}


def whisper(folder: Path, **generation: object) -> WhisperForConditionalGeneration:
    """Write a tiny Whisper of random weights into `folder` in Hugging Face form, with the demo's tokenizer."""
    converted = json.loads((ROOT / MODELS / "whisper" / "config.json").read_text())
    vocabulary = json.loads((ROOT / MODELS / "whisper" / "vocabulary.json").read_text())
    (end,) = converted["suppress_ids_begin"]
    torch.manual_seed(7)
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": end + 1}
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(vocabulary), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, suppress_tokens=None,
            begin_suppress_tokens=None, **ids,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(eos_token_id=end, decoder_start_token_id=end + 1, **generation)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    tokenizer = str(ROOT / MODELS / "whisper" / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return model


def prepared(output: Path | str) -> Prepared:
    """Read the latest lock of a folder of prepared models; fails where there is none."""
    latest = read_prepared(str(output))
    assert latest is not None
    return latest

"""Small models that come with the project. They know a few hundred words in synthetic voices: see demo/models/README.md."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = Path("demo/models")
"""Folder of the models, relative to `ROOT`, where the job is started, so that the printed command is short."""
LANGUAGES = ("en", "es")


def options(mode: str = "mean") -> list[str]:
    """Return the job's options for these models; without them it uses the published ones."""
    return [
        *("--emotion-model", *(f"{language}={MODELS}/{mode}-{language}" for language in LANGUAGES)),
        *("--sentence-encoder", *(f"{language}={MODELS}/sentence-encoder" for language in LANGUAGES)),
        *("--asr-model", str(MODELS / "whisper")),
    ]

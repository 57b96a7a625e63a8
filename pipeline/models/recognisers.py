"""Speech recognisers of a plan: checked before a job starts, and loaded by the engine that their files need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.settings import Settings
from pipeline.errors import ConfigError
from pipeline.models.transcription import Transcriber

if TYPE_CHECKING:
    from pipeline.models.checkpoints.weights import Checkpoint


def checked(checkpoint: Checkpoint, language: str) -> tuple[Checkpoint, str | None]:
    """Check a speech recogniser. Returns: its files, converted if need be, and the sha256 of the files before that."""
    from pipeline.models.checkpoints import convert
    from pipeline.models.whisper import check_model

    if checkpoint.spec.endswith(".en") and language != "en":
        raise ConfigError("this model is English-only; use a multilingual one for this language")
    source_sha256 = None
    if convert.needs_conversion(checkpoint):
        source_sha256, checkpoint = checkpoint.sha256, convert.converted_whisper(checkpoint)
    check_model(checkpoint.directory, language)
    return checkpoint, source_sha256


def load(checkpoint: Checkpoint, settings: Settings, *, device: str, num_threads: int = 0) -> Transcriber:
    """Load a speech recogniser. `num_threads`: CPU threads; 0 keeps the library's default."""
    from pipeline.models.whisper import WhisperTranscriber

    return WhisperTranscriber(
        checkpoint.directory,
        device=device,
        compute_type=settings.asr_compute_type,
        window=settings.asr_window,
        num_threads=num_threads,
        beam_size=settings.beam_size,
        words=settings.words,
    )

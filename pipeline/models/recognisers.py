"""Speech recognisers of a plan: checked before a job starts, and loaded by the engine that their files need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config import AUTO_LANGUAGE, JobConfig, ModelChoice
from pipeline.config.settings import Settings
from pipeline.errors import ConfigError
from pipeline.models.checkpoints import onnx
from pipeline.models.transcription import Transcriber
from pipeline.pins import Role, Task

if TYPE_CHECKING:
    from pipeline.models.checkpoints.weights import Checkpoint


def check_choice(role: Role, spec: str, config: ModelChoice, *, prepared: bool) -> None:
    """Reject a model for onnx-asr that cannot have its role, or be used with other options.

    Args:
        prepared: whether the files are in a prepared folder, which is checked later.
    Raises: ConfigError.
    """
    if not onnx.is_onnx(spec):
        return
    if role.task is not Task.ASR:
        raise ConfigError("onnx: is for speech recognisers, so for --asr-model alone")
    if not isinstance(config, JobConfig):  # models to prepare, which may be in the folder already
        return
    if prepared:
        onnx.check_installed()
    else:
        onnx.check_local(spec, role.language)
    for fault in _faults(config):
        raise ConfigError(f"a model for onnx-asr cannot be used with {fault}")


def _faults(config: JobConfig) -> Iterator[str]:
    """Yield a phrase for each option that has no meaning for models of onnx-asr."""
    if config.words:
        yield "--words: the library gives no end of a word"
    if config.language == AUTO_LANGUAGE:
        yield "--language auto: it gives no probability of a language; set the language of the rows, or --language"
    if config.segmentation == "none":
        yield "--segmentation none: it takes at most 30 s, and whole recordings are longer"
    if config.beam_size != 1:
        yield f"--beam-size {config.beam_size}: the library decodes greedily"
    if config.asr_window != "auto":
        yield f"--asr-window {config.asr_window}: only Whisper has it"
    if config.asr_compute_type != "auto":
        yield f"--asr-compute-type {config.asr_compute_type}: its files decide; onnx:DIR@int8 chooses quantised ones"


def checked(checkpoint: Checkpoint, language: str) -> tuple[Checkpoint, str | None]:
    """Check a speech recogniser. Returns: its files, converted if need be, and the sha256 of the files before that."""
    from pipeline.models.checkpoints import convert
    from pipeline.models.whisper import check_model

    if onnx.is_onnx(checkpoint.spec):
        onnx.check_language(checkpoint.directory, language)
        return checkpoint, None
    if checkpoint.spec.endswith(".en") and language != "en":
        raise ConfigError("this model is English-only; use a multilingual one for this language")
    source_sha256 = None
    if convert.needs_conversion(checkpoint):
        source_sha256, checkpoint = checkpoint.sha256, convert.converted_whisper(checkpoint)
    check_model(checkpoint.directory, language)
    return checkpoint, source_sha256


def load(checkpoint: Checkpoint, settings: Settings, *, device: str, num_threads: int = 0) -> Transcriber:
    """Load a speech recogniser. `num_threads`: CPU threads; 0 keeps the library's default."""
    if onnx.is_onnx(checkpoint.spec):
        from pipeline.models.onnx import OnnxTranscriber

        quantisation = onnx.split(checkpoint.spec)[1]
        return OnnxTranscriber(checkpoint.directory, quantisation=quantisation, device=device, num_threads=num_threads)
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

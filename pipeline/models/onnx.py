"""Speech recognition with the library onnx-asr: Parakeet, Canary, GigaAM, Vosk and others, as ONNX graphs.

A transcript has its text alone, without Whisper's figures, because their thresholds are Whisper's. On CPU utterances run one
by one, so a text does not depend on its neighbours; on a GPU they share padded batches, whose last bits may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError, Reject
from pipeline.models.batching import Batcher
from pipeline.models.checkpoints.onnx import languages_of, model_type_of
from pipeline.models.invented import compression_ratio
from pipeline.models.transcription import Transcript, unsupported_language
from pipeline.stats import BatchFigures

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_GPU_BATCH = 16
"""Batch size on a GPU: a cautious choice, not measured; it is halved when memory runs out."""


class OnnxTranscriber:
    """One model of onnx-asr, loaded once: a `Transcriber`.

    Args:
        directory: a folder that `pipeline.models.checkpoints.onnx` has checked.
        quantisation: ending of the graphs' names, such as int8; None for the plain ones.
        device: cpu or cuda, which needs onnxruntime-gpu.
        num_threads: CPU threads of one graph; 0 keeps the library's default.
        max_batch: utterances in one pass. Default: 1 on CPU, and 16 elsewhere.
    Raises: ConfigError when a graph cannot be loaded, or the device is not available.
    """

    def __init__(
        self,
        directory: Path,
        *,
        quantisation: str | None = None,
        device: str,
        num_threads: int = 0,
        max_batch: int | None = None,
    ) -> None:
        import onnxruntime
        from onnx_asr import load_model

        provider = _PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise ConfigError(f"onnxruntime has no {provider} here: install onnxruntime-gpu in place of onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # a waiting thread would take the core from the emotion models
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        failures: tuple[type[Exception], ...] = (*_onnxruntime_errors(), KeyError, ValueError, OSError)
        try:
            self._model = load_model(
                model_type_of(directory),
                directory,
                quantization=quantisation,
                sess_options=options,
                providers=[provider],
            )
        except failures as error:
            raise ConfigError(f"{directory} cannot be loaded by onnx-asr: {type(error).__name__}: {error}") from error
        self._languages = languages_of(directory)
        self._batcher = Batcher(
            max_batch=max_batch or (1 if device == "cpu" else _GPU_BATCH), max_padded=math.inf, device=device
        )

    def transcribe_many(
        self, waveforms: Sequence[NDArray[np.float32]], languages: Sequence[str | None]
    ) -> list[Transcript | Reject]:
        """Transcribe utterances of at most 30 s: see `Transcriber`. A language of None is left to the model."""
        outcomes: dict[int, Transcript | Reject] = {}
        rows: dict[str | None, list[int]] = {}
        for row, language in enumerate(languages):
            if language is not None and self._languages is not None and language not in self._languages:
                outcomes[row] = unsupported_language(language)
            else:
                rows.setdefault(language, []).append(row)
        for language, chosen in rows.items():
            clips = [waveforms[row] for row in chosen]
            for row, text in zip(chosen, self._texts(clips, language), strict=True):
                outcomes[row] = Transcript(text, language, compression_ratio=compression_ratio(text))
        return [outcomes[row] for row in range(len(waveforms))]

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call."""
        return self._batcher.take_figures()

    def _texts(self, waveforms: Sequence[NDArray[np.float32]], language: str | None) -> list[str]:
        """Transcribe waveforms of one language, in batches."""
        told: dict[str, Any] = {} if self._languages is None or language is None else {"language": language}

        def forward(batch: list[int]) -> list[str]:
            try:
                clips = [waveforms[i] for i in batch]
                texts: list[str] = self._model.recognize(clips, sample_rate=SAMPLING_RATE, **told)
            except _onnxruntime_errors() as error:
                raise RuntimeError(str(error)) from error  # by which `Batcher` detects a lack of memory
            return texts

        transcribed: dict[int, str] = {}
        for batch, results in self._batcher.run([len(each) / SAMPLING_RATE for each in waveforms], forward):
            transcribed.update(zip(batch, map(str.strip, results), strict=True))
        return [transcribed[i] for i in range(len(waveforms))]


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the classes of onnxruntime's errors, which have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))

"""Speech to text with faster-whisper, with the figures by which a reader can judge each text.

Deterministic on purpose: beam search at temperature 0 and no sampled fallback, because a retried shard must give the same
words. What Whisper's fallback would have questioned stands in the confidence columns instead.

The rule against invented words, in order:
1. Voice activity finds no speech in the utterance: the text is empty, and Whisper is not asked.
2. Whisper gives `no_speech_prob` above 0.6 and `avg_logprob` below -1.0 (its paper's rule): the text is empty.
Whatever else it hears is kept, with avg_logprob, no_speech_prob and compression_ratio beside it.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.segment import has_speech
from pipeline.errors import ConfigError, Reason, RejectedRow, Stage
from pipeline.models.memory import shortage_as_memory_error

WINDOW_S = 30
"""Length of Whisper's window. Source: Radford et al. 2022, section 2.2."""
NO_SPEECH_PROB = 0.6
NO_SPEECH_LOGPROB = -1.0
"""Whisper's voice activity rule. Source: Radford et al. 2022, section 4.5."""
_MAX_LENGTH = 448


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard. The figures are Whisper's own; None where Whisper was not asked."""

    text: str
    language: str | None
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None


class Transcriber:
    """One Whisper model in CTranslate2 form, loaded once.

    Args:
        directory: a converted model (`model.bin`, `config.json`, tokenizer).
        device: cpu or cuda.
        compute_type: CTranslate2's name (float32, float16, int8, ...).
        num_threads: CPU threads of one transcription.
        beam_size: 1 is the reference system's greedy decoding.
    """

    def __init__(
        self, directory: Path, *, device: str, compute_type: str, num_threads: int = 0, beam_size: int = 1
    ) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(directory), device=device, compute_type=compute_type, cpu_threads=num_threads, local_files_only=True
        )
        self._beam_size = beam_size

    def transcribe(self, waveform: NDArray[np.float32], language: str | None) -> Transcript:
        """Transcribe one utterance.

        Args:
            waveform: float32 [num_samples] at 16 kHz.
            language: a Whisper language code, or None to detect it.
        """
        if not has_speech(waveform):
            return Transcript("", language)
        with shortage_as_memory_error():
            if len(waveform) <= WINDOW_S * SAMPLING_RATE:
                return self._transcribe_window(waveform, language)
            return self._transcribe_long(waveform, language)

    def _require_language(self, language: str) -> None:
        known = self._model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None
        if not (known and (self._model.model.is_multilingual or language == "en")):
            detail = f"the speech recognition model knows no language {language!r}"
            raise RejectedRow(Reason.UNSUPPORTED_LANGUAGE, detail, Stage.TRANSCRIBE)

    def _transcribe_window(self, waveform: NDArray[np.float32], language: str | None) -> Transcript:
        """At most 30 s, in one window.

        The waveform is padded, not the frames: the log-mel floor of silence is about -1.08, and the frames of 0.0 that
        faster-whisper fills in are not what the reference system hears.
        """
        from faster_whisper.tokenizer import Tokenizer

        padded = np.zeros(WINDOW_S * SAMPLING_RATE, dtype=np.float32)
        padded[: len(waveform)] = waveform
        encoded = self._model.encode(self._model.feature_extractor(padded, padding=0))
        if language is None:
            token, _ = self._model.model.detect_language(encoded)[0][0]
            language = token.strip("<|>")
        self._require_language(language)
        tokenizer = Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )
        result = self._model.model.generate(
            encoded,
            [[*tokenizer.sot_sequence, tokenizer.no_timestamps]],
            beam_size=self._beam_size,
            max_length=_MAX_LENGTH,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],
        )[0]
        tokens = result.sequences_ids[0]
        # CTranslate2 divides by the length without the end token; Whisper counts it
        avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        text = tokenizer.decode([token for token in tokens if token < tokenizer.eot]).strip()
        return _judged(Transcript(text, language, avg_logprob, result.no_speech_prob, _compression_ratio(text)))

    def _transcribe_long(self, waveform: NDArray[np.float32], language: str | None) -> Transcript:
        """A recording that was not cut: faster-whisper's own sliding window."""
        if language is not None:
            self._require_language(language)
        segments, info = self._model.transcribe(
            waveform,
            language=language,
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=NO_SPEECH_PROB,
            log_prob_threshold=NO_SPEECH_LOGPROB,
        )
        heard: list[Any] = list(segments)
        text = "".join(segment.text for segment in heard).strip()
        if not heard:
            return Transcript("", info.language)
        weights = [max(len(segment.tokens), 1) for segment in heard]
        return Transcript(
            text,
            info.language,
            float(np.average([segment.avg_logprob for segment in heard], weights=weights)),
            max(segment.no_speech_prob for segment in heard),
            _compression_ratio(text),
        )


def check_model(directory: Path, language: str) -> None:
    """Make sure that a directory holds a converted Whisper that knows the language, without loading its weights.

    Raises: ConfigError naming the missing file or language.
    """
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory} has no {name}; a faster-whisper model (CTranslate2 form) is needed")
    if not any(directory.glob("vocabulary.*")):
        raise ConfigError(f"{directory} has no vocabulary.json or vocabulary.txt; a faster-whisper model is needed")
    try:
        tokens = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
        names = {token["content"] for token in tokens}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory / 'tokenizer.json'} cannot be read: {error}") from error
    if "<|transcribe|>" in names and f"<|{language}|>" not in names:
        raise ConfigError(f"{directory} knows no language {language!r}")


def _judged(transcript: Transcript) -> Transcript:
    silent = (transcript.no_speech_prob or 0.0) > NO_SPEECH_PROB and (transcript.avg_logprob or 0.0) < NO_SPEECH_LOGPROB
    if not silent:
        return transcript
    return Transcript("", transcript.language, transcript.avg_logprob, transcript.no_speech_prob, None)


def _compression_ratio(text: str) -> float | None:
    """Bytes over zlib bytes: above about 2.4 a text repeats itself. Source: Radford et al. 2022, section 4.5."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else None

"""Speech recognition with faster-whisper, with confidence figures for each text.

The caller passes one shard's utterances at once. Those of at most 30 s are sorted by length and run through encoder
and decoder in batches that mix recordings and languages; each has its own prompt. A row's text does not depend on
the other rows of its batch, nor its figures to 1e-5 in float32 on CPU; in half precision on a GPU the last bits
differ.

Decoding is deterministic: beam search at temperature 0 without the sampled fallback, because a retried shard must
return the same words. The confidence columns show the rows for which Whisper would have used its fallback: they are
not decoded a second time, so a batch returns what a row alone would return.

Texts are what the model says; `pipeline.models.judgement` has the rules against invented words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.segmentation import speech_seconds
from pipeline.config.settings import AsrWindow
from pipeline.errors import ConfigError, Reject, RejectedRow
from pipeline.models.batching import Batcher
from pipeline.models.encoder import WINDOW_S, Encoder
from pipeline.models.invented import compression_ratio, is_doubtful
from pipeline.models.memory import shortage_as_memory_error
from pipeline.models.transcription import Transcript, unsupported_language
from pipeline.models.words import Spoken, Word, align, spelling
from pipeline.stats import BatchFigures

NO_SPEECH_PROB = 0.6
NO_SPEECH_LOGPROB = -1.0
"""Thresholds of Whisper's voice activity rule, with `NO_SPEECH_PROB`. Source: Radford et al. 2022, section 4.5."""
_MAX_LENGTH = 448
_MOST_WINDOWS = 10
"""Largest number of windows used to detect the language of an uncut recording."""
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_GPU_BATCH = 16
"""Batch size on a GPU: a cautious choice, not measured yet; it is halved when memory runs out."""


class WhisperTranscriber:
    """One Whisper model in CTranslate2 form, loaded once: a `Transcriber`.

    Args:
        directory: a converted model (`model.bin`, `config.json`, tokenizer).
        device: cpu or cuda.
        compute_type: CTranslate2's name (float32, float16, int8, ...).
        window: "full" encodes 30 s for every utterance; "short" its own length and the cached output of silence
            (`pipeline.models.encoder`), and 30 s where the text is doubtful (`pipeline.models.invented`).
        num_threads: CPU threads of one transcription, and torch's for this whole process; 0 keeps the libraries'
            defaults.
        beam_size: 1 is the reference system's greedy decoding.
        words: whether transcripts have the times of their words.
        max_batch: utterances in one pass. Default: 1 on CPU, where batching costs 10 to 20 % of the speed, and 16
            elsewhere.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: str,
        compute_type: str,
        window: AsrWindow = "full",
        num_threads: int = 0,
        beam_size: int = 1,
        words: bool = False,
        max_batch: int | None = None,
    ) -> None:
        import torch
        from faster_whisper import WhisperModel

        if num_threads:
            torch.set_num_threads(num_threads)

        self._model = WhisperModel(
            str(directory), device=device, compute_type=compute_type, cpu_threads=num_threads, local_files_only=True
        )
        self._encode = Encoder(self._model, device=device, window=window)
        self._encode_full = Encoder(self._model, device=device, window="full")
        self._tokenizers: dict[str, Any] = {}
        self._beam_size, self._words = beam_size, words
        self._batcher = Batcher(
            max_batch=max_batch or (1 if device == "cpu" else _GPU_BATCH),
            max_padded=math.inf,
            device=device,
            equal=True,  # a row's window must not depend on its neighbours
        )

    def transcribe(self, waveform: NDArray[np.float32], language: str | None) -> Transcript:
        """Transcribe one utterance: see `transcribe_many`. Raises: RejectedRow UNSUPPORTED_LANGUAGE."""
        (transcript,) = self.transcribe_many([waveform], [language])
        if isinstance(transcript, Reject):
            raise RejectedRow.of(transcript)
        return transcript

    def transcribe_many(
        self, waveforms: Sequence[NDArray[np.float32]], languages: Sequence[str | None]
    ) -> list[Transcript | Reject]:
        """Transcribe utterances.

        Args:
            waveforms: float32 [num_samples] at 16 kHz; one past 30 s runs alone, through faster-whisper's sliding
                window.
            languages: a Whisper language code for each, or None to detect it.
        Returns: in input order, a transcript, or UNSUPPORTED_LANGUAGE for a language that the model does not know.
        Raises: MemoryError when one utterance alone does not fit in memory; any other error of the model, for all of
            them.
        """
        outcomes: dict[int, Transcript | Reject] = {}
        windows: list[int] = []
        for row, (waveform, language) in enumerate(zip(waveforms, languages, strict=True)):
            if language is not None and not self._knows(language):
                outcomes[row] = unsupported_language(language)
            elif len(waveform) > WINDOW_S * SAMPLING_RATE:
                with shortage_as_memory_error():
                    outcomes[row] = self._transcribe_long(waveform, language)
            else:
                windows.append(row)
        # by length, because a batch is decoded until its longest text ends
        windows.sort(key=lambda row: -len(waveforms[row]))

        chosen = [(waveforms[row], languages[row]) for row in windows]
        first = self._transcribe_rows(chosen, self._encode)
        again = [i for i, transcript in enumerate(first) if self._needs_full_window(chosen[i][0], transcript)]
        second = self._transcribe_rows([chosen[i] for i in again], self._encode_full)
        for i, transcript in zip(again, second, strict=True):
            first[i] = transcript
        outcomes.update(zip(windows, first, strict=True))
        return [outcomes[row] for row in range(len(waveforms))]

    def _needs_full_window(self, waveform: NDArray[np.float32], transcript: Transcript) -> bool:
        """Return whether a short window gave a text that Whisper would decode again, such as one that repeats itself."""
        short = self._encode.window_s(len(waveform)) < WINDOW_S
        return short and is_doubtful(transcript.text, transcript.avg_logprob)

    def _transcribe_rows(
        self, rows: Sequence[tuple[NDArray[np.float32], str | None]], encoder: Encoder
    ) -> list[Transcript]:
        """Transcribe waveforms of at most 30 s, given with their languages, in batches."""

        def forward(batch: list[int]) -> list[Transcript]:
            waveforms, languages = zip(*(rows[i] for i in batch), strict=True)
            return self._transcribe_windows(waveforms, languages, encoder)

        durations_s = [len(waveform) / SAMPLING_RATE for waveform, _ in rows]
        windows_s = [encoder.window_s(len(waveform)) for waveform, _ in rows]
        transcripts: dict[int, Transcript] = {}
        for batch, results in self._batcher.run(windows_s, forward, durations_s):
            transcripts.update(zip(batch, results, strict=True))
        return [transcripts[i] for i in range(len(rows))]

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call, without recordings past 30 s."""
        return self._batcher.take_figures()

    def _knows(self, language: str) -> bool:
        known = self._model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None
        return known and (self._model.model.is_multilingual or language == "en")

    def _tokenizer(self, language: str) -> Any:  # noqa: ANN401 - faster-whisper ships no types
        if language not in self._tokenizers:
            from faster_whisper.tokenizer import Tokenizer

            self._tokenizers[language] = Tokenizer(
                self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
            )
        return self._tokenizers[language]

    def _transcribe_windows(
        self, waveforms: Sequence[NDArray[np.float32]], languages: Sequence[str | None], encoder: Encoder
    ) -> list[Transcript]:
        """Transcribe waveforms of at most 30 s, in one window each, all in one pass."""
        encoded = encoder(waveforms)
        probs: list[Mapping[str, float]] = [{} for _ in languages]
        if None in languages:
            detections = self._detect(encoded)
            probs = [{} if language else detected for language, detected in zip(languages, detections, strict=True)]
        spoken = [language or likeliest(each) for language, each in zip(languages, probs, strict=True)]
        tokenizers = [self._tokenizer(language) for language in spoken]
        results = self._model.model.generate(
            encoded,
            [[*tokenizer.sot_sequence, tokenizer.no_timestamps] for tokenizer in tokenizers],
            beam_size=self._beam_size,
            max_length=_MAX_LENGTH,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],
        )
        transcripts = list(map(_transcript, results, tokenizers, spoken))
        words: Sequence[tuple[Word, ...] | None] = [None] * len(transcripts)
        if self._words:
            decoded = [
                Spoken(waveform, transcript.text, _text_tokens(result, tokenizer), tokenizer)
                for waveform, transcript, result, tokenizer in zip(
                    waveforms, transcripts, results, tokenizers, strict=True
                )
            ]
            words = align(self._model, encoder, encoded, decoded, max_length=_MAX_LENGTH)
        return [
            replace(transcript, language_probs=detected, words=aligned)
            for transcript, detected, aligned in zip(transcripts, probs, words, strict=True)
        ]

    def _detect(self, encoded: Any) -> list[Mapping[str, float]]:  # noqa: ANN401 - as above
        """Return the probability of each language the model knows, for each window of an encoder output."""
        if not self._model.model.is_multilingual:
            return [{"en": 1.0}] * encoded.shape[0]
        ranked = self._model.model.detect_language(encoded)
        return [{token.strip("<|>"): prob for token, prob in window} for window in ranked]

    def _detect_long(self, waveform: NDArray[np.float32]) -> Mapping[str, float]:
        """Return the mean probability of each language over windows of a long recording, weighted by their speech.

        Uses at most `_MOST_WINDOWS` windows with speech, spread over the recording, because the first may be a jingle.
        """
        starts = range(0, len(waveform), WINDOW_S * SAMPLING_RATE)
        # golden-ratio steps: any prefix of them is spread evenly
        spread = sorted(range(len(starts)), key=lambda number: number * _GOLDEN_RATIO % 1)
        totals: dict[str, float] = {}
        windows, weight = 0, 0.0
        for number in spread:
            window = waveform[starts[number] : starts[number] + WINDOW_S * SAMPLING_RATE]
            if not (seconds := speech_seconds(window)):
                continue
            for language, prob in self._detect(self._encode([window]))[0].items():
                totals[language] = totals.get(language, 0.0) + seconds * prob
            windows, weight = windows + 1, weight + seconds
            if windows == _MOST_WINDOWS:
                break
        return {language: total / weight for language, total in totals.items()}

    def _transcribe_long(self, waveform: NDArray[np.float32], language: str | None) -> Transcript:
        """Transcribe an uncut recording with faster-whisper's own sliding window."""
        probs: Mapping[str, float] = {} if language else self._detect_long(waveform)
        if probs:
            language = likeliest(probs)
        segments, info = self._model.transcribe(
            waveform,
            language=language,
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=NO_SPEECH_PROB,
            log_prob_threshold=NO_SPEECH_LOGPROB,
            word_timestamps=self._words,
        )
        pieces: list[Any] = list(segments)
        text = "".join(piece.text for piece in pieces).strip()
        if not pieces:
            return Transcript("", info.language, language_probs=probs, words=() if self._words else None)
        weights = [max(len(piece.tokens), 1) for piece in pieces]
        return Transcript(
            text,
            info.language,
            float(np.average([piece.avg_logprob for piece in pieces], weights=weights)),
            max(piece.no_speech_prob for piece in pieces),
            compression_ratio(text),
            probs,
            spelling(text, [_word(word) for piece in pieces for word in piece.words]) if self._words else None,
        )


def likeliest(probs: Mapping[str, float]) -> str:
    """Return the language of the highest probability, the first by name among equals."""
    return max(sorted(probs), key=probs.__getitem__)


def check_model(directory: Path, language: str) -> None:
    """Check that a directory contains a converted Whisper that knows the language, without loading its weights.

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
        raise ConfigError(f"{directory} does not support language {language!r}")


def _transcript(result: Any, tokenizer: Any, language: str) -> Transcript:  # noqa: ANN401 - as above
    """Convert CTranslate2's result for one utterance."""
    tokens = result.sequences_ids[0]
    # CTranslate2 divides by the length without the end token; Whisper counts it
    avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
    text = tokenizer.decode(_text_tokens(result, tokenizer)).strip()
    return Transcript(text, language, avg_logprob, result.no_speech_prob, compression_ratio(text))


def _text_tokens(result: Any, tokenizer: Any) -> list[int]:  # noqa: ANN401 - as above
    return [token for token in result.sequences_ids[0] if token < tokenizer.eot]


def _word(word: Any) -> Word:  # noqa: ANN401 - as above
    """Convert faster-whisper's word."""
    return Word(word.word.strip(), float(word.start), float(word.end), float(word.probability))

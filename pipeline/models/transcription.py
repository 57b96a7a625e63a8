"""Interface of speech recognisers: what a shard asks of one, and the transcripts it returns.

`pipeline.models.whisper` runs Whisper with faster-whisper, `pipeline.models.onnx` other models with onnx-asr;
`pipeline.models.recognisers` loads the one that a plan pinned. Nothing else names an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, Reject, Stage
from pipeline.models.words import Word
from pipeline.stats import BatchFigures


@dataclass(frozen=True, slots=True)
class Transcript:
    """One transcript. The figures are Whisper's own; None when Whisper did not run.

    Attributes:
        language: language of the transcription: the given one, else the most probable.
        language_probs: probability of each language that the model knows, if the language was detected.
        words: its words with their times; None if they were not asked for, or cannot be aligned.
    """

    text: str
    language: str | None
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    language_probs: Mapping[str, float] = field(default_factory=dict)
    words: tuple[Word, ...] | None = None


class Transcriber(Protocol):
    """A speech recogniser, loaded once per process."""

    def transcribe_many(
        self, waveforms: Sequence[NDArray[np.float32]], languages: Sequence[str | None]
    ) -> list[Transcript | Reject]:
        """Transcribe utterances. Equal calls return equal texts, because a retried shard must return the same words.

        Args:
            waveforms: float32 [num_samples] at 16 kHz.
            languages: a primary BCP-47 tag for each, or None to detect it.
        Returns: in input order, a transcript, or UNSUPPORTED_LANGUAGE for a language that the model does not know.
        Raises: MemoryError when one utterance alone does not fit in memory; any other error of the model, for all of
            them.
        """
        ...

    def take_figures(self) -> BatchFigures:
        """Return the counts since the last call."""
        ...


def unsupported_language(language: str) -> Reject:
    """Return the reject of an utterance in a language that the speech recogniser does not know."""
    detail = f"the speech recognition model does not support language {language!r}"
    return Reject(Reason.UNSUPPORTED_LANGUAGE, detail, Stage.TRANSCRIBE)

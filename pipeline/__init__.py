"""Turn corpora of speech into tables of emotion: label recordings in this process, or run the job on a cluster.

The functions and classes named in `__all__` are loaded at first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api import Annotations, Annotator, Record, Records, annotate, open_dataset, search, verify
    from pipeline.errors import ConfigError, JobError, RejectedRow

__version__ = "0.1.0"

SAMPLING_RATE = 16_000
"""Sampling rate in Hz on which Whisper, Wav2Vec2-BERT and Silero VAD were trained. Importing it here needs no Arrow."""

MAX_SEGMENT_S = 30.0
"""Longest utterance of a recording that is cut, in seconds: Whisper's window (Radford et al. 2022, section 2.2)."""

__all__ = [
    "SAMPLING_RATE",
    "Annotations",
    "Annotator",
    "ConfigError",
    "JobError",
    "Record",
    "Records",
    "RejectedRow",
    "__version__",
    "annotate",
    "open_dataset",
    "search",
    "verify",
]
_ERRORS = ("ConfigError", "JobError", "RejectedRow")


def __getattr__(name: str) -> object:
    """Load a public name at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = vars(import_module("pipeline.errors" if name in _ERRORS else "pipeline.api"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Include the names that are not loaded yet, for completion."""
    return sorted({*globals(), *__all__})

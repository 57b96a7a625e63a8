"""Speech from espeak-ng's library, with the time of every word and phoneme.

Needs Debian's `libespeak-ng1`, a dependency of espeak-ng. Makes about 80 sentences per second and process. The library keeps
its state in globals, so a process uses one voice at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SYNTHESIS_HZ = 22_050
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _BUFFER_MS = 2, 1, 1, 0
_RATE, _VOLUME, _PITCH, _RANGE, _WORDGAP = 1, 2, 3, 4, 7
_END, _WORD, _PHONEME = 0, 1, 7
"""Constants of espeak-ng 1.51's `speak_lib.h`."""


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Manner:
    """espeak-ng's own settings: words a minute, pitch 0 to 99, pitch range 0 to 99, gap between words in 10 ms."""

    words_per_minute: int
    pitch: int
    range: int
    word_gap: int = 0


@dataclass(frozen=True, slots=True)
class Spoken:
    """One sentence synthesised by espeak-ng.

    Attributes:
        samples: float32 [num_samples] at `SYNTHESIS_HZ`.
        word_starts_s: seconds, one for each word given.
        phonemes: (seconds, name) in order; silence has an empty name.
        end_s: where the last word ends.
    """

    samples: NDArray[np.float32]
    word_starts_s: tuple[float, ...]
    phonemes: tuple[tuple[float, str], ...]
    end_s: float


class Espeak:
    """The library, loaded once per process (`espeak()`)."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise RuntimeError(f"espeak-ng is needed (apt-get install espeak-ng): {error}") from error
        if self._library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, None, _PHONEME_EVENTS) != SYNTHESIS_HZ:
            raise RuntimeError("espeak-ng does not speak at 22,050 Hz here")
        path = ctypes.c_char_p()
        self._library.espeak_Info.restype = ctypes.c_char_p
        self._library.espeak_Info(ctypes.byref(path))
        self._variants = Path((path.value or b"").decode()) / "voices" / "!v"
        self._pieces: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, int, int, str]] = []
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != _END:
            event = events[index]
            name = event.id.string.decode("utf-8", "replace") if event.type == _PHONEME else ""
            self._events.append((event.type, event.text_position, event.sample, name))
            index += 1
        return 0

    def speak(self, words: list[str], voice: str, manner: Manner, *, ending: str = ".") -> Spoken:
        """Synthesise one sentence.

        Args:
            voice: such as `en-us+f3`. `en-gb` is not usable: it resolves to an mbrola voice that is not installed.
            ending: punctuation, which bends the intonation.
        Raises: RuntimeError for a voice that is not there, or a sentence that gave no sound.
        """
        _, _, variant = voice.partition("+")
        # a variant that is not there would be left out without a word
        if not (self._variants / variant).exists() or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        settings = {
            _RATE: manner.words_per_minute,
            _VOLUME: 100,
            _PITCH: manner.pitch,
            _RANGE: manner.range,
            _WORDGAP: manner.word_gap,
        }
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        text = " ".join(words) + ending
        content = text.encode()
        self._pieces, self._events = [], []
        self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, _UTF8, None, None)
        if not self._pieces:
            raise RuntimeError(f"espeak-ng returned no audio for {text!r}")
        samples = np.concatenate(self._pieces).astype(np.float32) / 32768
        phonemes = tuple((at / SYNTHESIS_HZ, name) for kind, _, at, name in self._events if kind == _PHONEME)
        sounding = np.flatnonzero(np.abs(samples) > 1e-3)
        end_s = float(sounding[-1] + 1) / SYNTHESIS_HZ if len(sounding) else len(samples) / SYNTHESIS_HZ
        return Spoken(samples, self._word_starts(words, end_s), phonemes, end_s)

    def _word_starts(self, words: list[str], end_s: float) -> tuple[float, ...]:
        """Return word times by text position; words that espeak-ng joins share their time evenly."""
        starts = {position: at / SYNTHESIS_HZ for kind, position, at, _ in self._events if kind == _WORD}
        known, position = [], 1
        for index, word in enumerate(words):
            if position in starts:
                known.append((index, starts[position]))
            position += len(word) + 1
        if not known or known[0][0] != 0:
            known.insert(0, (0, 0.0))
        known.append((len(words), end_s))
        indices, times = zip(*known, strict=True)
        return tuple(float(at) for at in np.interp(range(len(words)), indices, np.maximum.accumulate(times)))


@cache
def espeak() -> Espeak:
    """Return the library of this process."""
    return Espeak()

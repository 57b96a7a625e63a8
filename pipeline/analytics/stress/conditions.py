"""Conditions of a stress test, their levels from mild to severe, and the parser of `--conditions`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pipeline.analytics.stress.signals import Waveform

CLEAN = "clean"
"""Name of the condition in which a clip stays as it is."""

_SNR = (
    "the speech level is the mean power of the 20 ms frames at most 30 dB below the loudest; noise over the whole clip"
)
_MP3_RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Bit rates of MPEG-2 Layer III, which is MP3 at 16 kHz, in kbit/s (ISO/IEC 13818-3, 2.4.2.3)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to degrade a clip.

    Attributes:
        name: as in `--conditions` and in the results.
        unit: of the levels.
        levels: default levels, the mildest first.
        meaning: definition of the level, for the page.
        allowed: returns whether a level is possible.
        range: the possible levels in words.
        module: module of this package whose function `name` degrades a waveform.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    meaning: str
    allowed: Callable[[float], bool]
    range: str
    module: str = "signals"

    def apply(self, waveform: Waveform, level: float, *, recording_id: str, seed: int) -> Waveform:
        """Degrade a clip. The result depends on nothing but the arguments; all levels of a clip share their noise."""
        # imported late: scipy, soxr and PyAV are not needed to refuse a command line
        degrade = getattr(import_module(f"{__package__}.{self.module}"), self.name)
        key = hashlib.sha256(f"{seed}\0{self.name}\0{recording_id}".encode()).digest()
        degraded: Waveform = degrade(waveform, level, np.random.default_rng(int.from_bytes(key)))
        return degraded


def _within(low: float, high: float, level: float) -> bool:
    return low <= level <= high


def _noise(name: str, what: str) -> Condition:
    return Condition(name, "dB SNR", (20, 10, 0), f"{what}; {_SNR}", partial(_within, -20, 60), "-20 to 60")


def _g711(name: str, law: str) -> Condition:
    meaning = f"8 kHz and G.711 {law}, as on a fixed telephone line (libsndfile)"
    return Condition(name, "kbit/s", (64,), meaning, (64).__eq__, "64", "codecs")


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        _noise("white_noise", "white Gaussian noise"),
        _noise("pink_noise", "Gaussian noise that falls by 3 dB per octave"),
        _noise("speech_noise", "stationary noise with the long-term spectrum of the clip itself"),
        Condition(
            "gain",
            "dB",
            (-10, -20, -30),
            "the level is changed and limited to full scale, without rounding",
            partial(_within, -60, 60),
            "-60 to 60",
        ),
        Condition(
            "clipping",
            "% clipped",
            (1, 5, 20),
            "the loudest samples are limited: this share of the samples in the 20 ms "
            "frames at most 30 dB below the loudest reaches the limit",
            partial(_within, 0.01, 90),
            "0.01 to 90",
        ),
        Condition(
            "narrowband",
            "kHz",
            (8,),
            "resampled to this rate and back to 16 kHz (soxr HQ)",
            partial(_within, 2, 15),
            "2 to 15",
        ),
        Condition(
            "opus",
            "kbit/s",
            (24, 12, 6),
            "Opus for speech with a variable bit rate (libopus), encoded and decoded",
            partial(_within, 6, 256),
            "6 to 256",
            "codecs",
        ),
        Condition(
            "mp3",
            "kbit/s",
            (32, 16, 8),
            "MP3 at 16 kHz with a constant bit rate (LAME), encoded and decoded",
            _MP3_RATES.__contains__,
            ", ".join(map(str, _MP3_RATES)),
            "codecs",
        ),
        _g711("mu_law", "mu-law"),
        _g711("a_law", "A-law"),
        Condition(
            "reverberation",
            "s RT60",
            (0.3, 0.6, 1.2),
            "a synthetic room: direct sound, then noise of the same energy that "
            "decays by 60 dB in this time; the level of the clip is kept",
            partial(_within, 0.05, 10),
            "0.05 to 10",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A condition at one level; `severity` counts the levels of a condition from 1."""

    condition: Condition
    level: float
    severity: int

    @property
    def name(self) -> str:
        """Name in keys and ids, such as `white_noise-10`."""
        return f"{self.condition.name}-{self.level:g}"


def parse_conditions(words: Sequence[str]) -> tuple[Variant, ...]:
    """Parse `NAME` and `NAME=LEVEL,LEVEL` into variants; no words mean every condition at its default levels.

    Raises: ConfigError for an unknown condition, a condition that is given twice, and an impossible level.
    """
    chosen: dict[str, tuple[float, ...]] = {}
    for word in words or CONDITIONS:
        name, equals, levels = word.partition("=")
        name = name.replace("-", "_").lower()
        if name not in CONDITIONS:
            near = did_you_mean(name, CONDITIONS)
            raise ConfigError(f"--conditions: there is no condition {name!r}{near}; known: {', '.join(CONDITIONS)}")
        if name in chosen:
            raise ConfigError(f"--conditions names {name} twice; give its levels together, as in {name}=1,2")
        chosen[name] = _levels(CONDITIONS[name], levels.split(",")) if equals else CONDITIONS[name].levels
    return tuple(variants_of(chosen))


def variants_of(levels: Mapping[str, Iterable[float]]) -> Iterable[Variant]:
    """Yield the variants of conditions with the given levels, in order."""
    for name, values in levels.items():
        yield from (Variant(CONDITIONS[name], level, number) for number, level in enumerate(values, 1))


def _levels(condition: Condition, words: Sequence[str]) -> tuple[float, ...]:
    levels = []
    for word in words:
        try:
            level = float(word)
        except ValueError:
            level = float("nan")
        if not condition.allowed(level):
            raise ConfigError(
                f"--conditions {condition.name}: {word!r} is not a level; {condition.unit} of {condition.range}"
            )
        levels.append(level)
    if len(set(levels)) < len(levels):
        raise ConfigError(f"--conditions {condition.name}: a level is named twice")
    return tuple(levels)

"""Errors of `--channels auto` on two-channel recordings made of known speakers: calls, and one conversation in two channels.

usage: python -m benchmarks.channels MANIFEST [--recordings N]

MANIFEST has rows with `audio`, relative to it, and `speaker`. Prints how often each kind of recording is split.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.channels import carry_different_speech
from pipeline.audio.decode import decode

Waveform = NDArray[np.float32]
Pair = tuple[Waveform, Waveform]
_TURNS = 3


def main() -> None:
    """Make the recordings, decide on each, and print the shares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channels", description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--recordings", type=int, default=40, help="recordings of each kind")
    flags = parser.parse_args()
    by_speaker: dict[str, list[Path]] = {}
    for line in flags.manifest.read_text().splitlines():
        row = json.loads(line)
        by_speaker.setdefault(row["speaker"], []).append(flags.manifest.parent / row["audio"])
    for name, (make, is_call) in _KINDS.items():
        chance = random.Random(name)
        split = sum(carry_different_speech(make(*_sides(by_speaker, chance), chance)) for _ in range(flags.recordings))
        wrong = flags.recordings - split if is_call else split
        print(f"{name:52s} split {split:3d} of {flags.recordings}; wrong {wrong / flags.recordings:.1%}", flush=True)


def _sides(by_speaker: dict[str, list[Path]], chance: random.Random) -> Pair:
    """Return the two sides of a conversation: speakers take turns, with pauses of 0.2 to 1 s."""
    sides: tuple[list[Waveform], list[Waveform]] = ([], [])
    one, other = chance.sample(sorted(by_speaker), 2)
    for _ in range(_TURNS):
        for side, speaker in enumerate((one, other)):
            clip = decode(chance.choice(by_speaker[speaker]).read_bytes())
            clip = clip * np.float32(0.1 / np.sqrt(np.square(clip).mean()))
            pause = np.zeros(round(chance.uniform(0.2, 1.0) * SAMPLING_RATE), np.float32)
            sides[side].extend((clip, pause))
            sides[1 - side].extend((np.zeros_like(clip), pause))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def _noise(like: Waveform, snr_db: float, chance: random.Random) -> Waveform:
    rng = np.random.default_rng(chance.getrandbits(32))
    return (rng.standard_normal(len(like)) * 0.1 * 10 ** (-snr_db / 20)).astype(np.float32)


def _noisy(pair: Pair, snr_db: float, chance: random.Random) -> Pair:
    one, other = (side + _noise(side, snr_db, chance) for side in pair)
    return one, other


def _leaking(level_db: float) -> Callable[[Waveform, Waveform, random.Random], Pair]:
    gain = np.float32(10 ** (level_db / 20))
    return lambda one, other, chance: _noisy((one + gain * other, other + gain * one), 40, chance)


def _together(one: Waveform, other: Waveform, chance: random.Random) -> Pair:
    """Both talk all the time."""
    first, second = (side[np.abs(side) > 0] for side in (one, other))
    count = min(len(first), len(second))
    return _noisy((first[:count], second[:count]), 40, chance)


def _room(waveform: Waveform, chance: random.Random, decay_s: float = 0.4) -> Waveform:
    """Add reverberation of exponentially decaying noise, another in each call."""
    rng = np.random.default_rng(chance.getrandbits(32))
    count = round(decay_s * SAMPLING_RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count) * 0.03
    tail[0] = 1.0
    size = len(waveform) + count
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(tail, size), size)
    return wet[: len(waveform)].astype(np.float32)


def _delayed(one: Waveform, other: Waveform, chance: random.Random) -> Pair:
    both = one + other
    return _noisy((both, np.float32(0.5) * np.concatenate([np.zeros(320, np.float32), both[:-320]])), 40, chance)


def _panned(level_db: float) -> Callable[[Waveform, Waveform, random.Random], Pair]:
    return lambda one, other, chance: _leaking(level_db)(_room(one, chance), _room(other, chance), chance)


_KINDS: dict[str, tuple[Callable[[Waveform, Waveform, random.Random], Pair], bool]] = {
    "call": (lambda one, other, chance: _noisy((one, other), 40, chance), True),
    "call, noise at 15 dB": (lambda one, other, chance: _noisy((one, other), 15, chance), True),
    "call, one side 20 dB quieter": (
        lambda one, other, chance: _noisy((one, np.float32(0.1) * other), 60, chance),
        True,
    ),
    "call, channels leak at -30 dB": (_leaking(-30), True),
    "call, channels leak at -20 dB": (_leaking(-20), True),
    "call, channels leak at -12 dB": (_leaking(-12), True),
    "both sides talk all the time": (_together, True),
    "two microphones in a room, 6 dB apart": (_panned(-6), False),
    "two microphones in a room, 3 dB apart": (_panned(-3), False),
    "one conversation, second channel 6 dB and 20 ms behind": (_delayed, False),
    "one conversation, noise at 20 dB in each": (
        lambda one, other, chance: _noisy((one + other, one + other), 20, chance),
        False,
    ),
    "one conversation, noise at 5 dB in each": (
        lambda one, other, chance: _noisy((one + other, one + other), 5, chance),
        False,
    ),
    "one speaker, the other channel is noise": (
        lambda one, other, chance: _noisy((one, np.zeros_like(other)), 20, chance),
        False,
    ),
    "one speaker, leaking at -20 dB": (
        lambda one, other, chance: _leaking(-20)(one, np.zeros_like(other), chance),
        False,
    ),
}
"""Maker and whether it is a call, by kind."""

if __name__ == "__main__":
    main()

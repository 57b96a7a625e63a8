"""Diarisation error of `--speakers` on mixtures of known speakers, beside that of one speaker for all.

usage: python -m benchmarks.speakers MANIFEST [--mixtures N] [--distance D ...]

MANIFEST has rows with `audio`, relative to it, and `speaker`. Needs the extra `speakers`, Resemblyzer's weights and
pyannote.metrics. Turns of 2 to 5 speakers follow one another, with pauses of 0.1 to 1 s.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate

from pipeline import SAMPLING_RATE
from pipeline.audio import speakers
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import Cuts, speech_frames
from pipeline.models.speakers import PACKAGE, pin_speaker_model, speaker_encoder

_COLLAR_S = 0.5
"""Seconds around each reference boundary that are not scored, half of it at each side, as is usual."""


def main() -> None:
    """Make the mixtures, find their speakers, and print the errors by number of speakers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speakers", description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--mixtures", type=int, default=20, help="mixtures for each number of speakers")
    parser.add_argument("--turns", type=int, default=16, help="turns of a mixture")
    parser.add_argument("--seed", default="test", help="seed of the mixtures; the distance was chosen with another one")
    parser.add_argument("--distance", type=float, nargs="+", default=[speakers.MOST_DISTANCE])
    flags = parser.parse_args()
    by_speaker: dict[str, list[Path]] = {}
    for line in flags.manifest.read_text().splitlines():
        row = json.loads(line)
        by_speaker.setdefault(row["speaker"], []).append(flags.manifest.parent / row["audio"])
    encoder = speaker_encoder(pin_speaker_model(PACKAGE))
    for distance in flags.distance:
        speakers.MOST_DISTANCE = distance
        for count in range(2, 6):
            errors = {"speakers": DiarizationErrorRate(_COLLAR_S), "one": DiarizationErrorRate(_COLLAR_S)}
            found = []
            for number in range(flags.mixtures):
                waveform, truth = _mixture(
                    by_speaker, count, flags.turns, random.Random(f"{flags.seed} {count} {number}")
                )
                spans = speakers.speaker_spans(waveform, Cuts(), encoder.embed)
                found.append(len({each.speaker for each in spans}))
                whole = Segment(0, len(waveform) / SAMPLING_RATE)
                for name, error in errors.items():
                    guess = Annotation()
                    for place, (span, speaker) in enumerate(spans):
                        guess[Segment(span.start_s, span.end_s), place] = speaker if name == "speakers" else 0
                    error(truth, guess, uem=whole)
            names = ("confusion", "missed detection", "false alarm")
            parts = {name: errors["speakers"][name] / errors["speakers"]["total"] for name in names}
            shown = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
            print(
                f"distance {distance:.2f}, {count} speakers: DER {abs(errors['speakers']):.1%} ({shown}); "
                f"one speaker for all {abs(errors['one']):.1%}; speakers found: {np.mean(found):.1f}",
                flush=True,
            )


def _mixture(
    by_speaker: dict[str, list[Path]], count: int, turns: int, chance: random.Random
) -> tuple[NDArray[np.float32], Annotation]:
    """Return a recording in which each speaker has a turn at least, and who talks when."""
    names = chance.sample(sorted(by_speaker), count)
    order = names + [chance.choice(names) for _ in range(turns - count)]
    chance.shuffle(order)
    pieces: list[NDArray[np.float32]] = []
    truth, position = Annotation(), 0
    for place, name in enumerate(order):
        clip = _spoken(decode(chance.choice(by_speaker[name]).read_bytes()))
        pause = np.zeros(round(chance.uniform(0.1, 1.0) * SAMPLING_RATE), np.float32)
        truth[Segment(position / SAMPLING_RATE, (position + len(clip)) / SAMPLING_RATE), place] = name
        pieces += [clip, pause]
        position += len(clip) + len(pause)
    return np.concatenate(pieces), truth


def _spoken(clip: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut the silence before and after a sentence, by voice activity detection, which the truth is thus taken from."""
    frames = np.flatnonzero(speech_frames(clip))
    return clip[frames[0] * 512 : (frames[-1] + 1) * 512] if len(frames) else clip


if __name__ == "__main__":
    main()

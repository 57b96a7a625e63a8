"""Word errors and speed of short Whisper windows against windows of 30 s, by clip length, noise, precision and beam.

usage: python -m benchmarks.asr_window [--words N] [--types int8,float32] [--beams 1,5] [--minutes M]

Needs espeak-ng, and a Whisper in CTranslate2 form in WHISPER_MODEL; SPEECH_MANIFESTS adds real clips
(`benchmarks.speech_clips`). Both windows transcribe each clip in turn, in one process with one thread. Results are kept by
clip under build/bench/asr_window, so a run that was interrupted or limited continues where it ended, and the table is of all
results so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, ROOT, Result, publish
from benchmarks.speech_clips import Clip, noisy, normalised, real, synthetic
from demo.models import MODELS
from pipeline.audio.segmentation import speech_seconds
from pipeline.config.settings import AsrWindow
from pipeline.models.whisper import WhisperTranscriber

WINDOWS: tuple[AsrWindow, ...] = ("full", "short")
_WORDS, _JOINED = 5_000, 60
_BINS_S = (0.0, 2.0, 5.0, 10.0, 20.0, 29.0)
_RESAMPLES = 10_000
_DETECTED_SHARE = 0.1
"""Share of the clips whose language is also detected, which needs another transcription."""
_GATE = 0.5
"""Points of word error rate that the upper bound of the difference may have for short windows to be the default."""
Row = Mapping[str, Any]


def main() -> None:
    """Measure what is missing, and write the table of everything measured so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asr_window", description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=_WORDS, help="synthetic words, clean and noisy each")
    parser.add_argument("--types", default="int8,float32")
    parser.add_argument("--beams", default="1,5")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop measuring after so long")
    asked = parser.parse_args()
    started = time.perf_counter()
    conditions = [(kind, int(beam)) for kind in asked.types.split(",") for beam in asked.beams.split(",")]
    rows = _measured(whisper_model(), RESULTS / "asr_window", conditions, asked.words, asked.minutes)
    result = table(rows)
    print("\n".join("  ".join(row) for row in [result.columns, *result.rows, *([note] for note in result.notes)]))
    publish("asr_window", result, took_s=time.perf_counter() - started)


def run(*, quick: bool) -> Result:
    """Measure every condition; quick: a few words with the demo's Whisper, kept nowhere."""
    conditions = [(kind, beam) for kind in ("int8", "float32") for beam in (1, 5)]
    if quick:
        return table(_measured(ROOT / MODELS / "whisper", None, conditions[:1], 30, float("inf")))
    return table(_measured(whisper_model(), RESULTS / "asr_window", conditions, _WORDS, float("inf")))


def whisper_model() -> Path:
    """Return the folder of the Whisper to measure."""
    if "WHISPER_MODEL" not in os.environ:
        raise SystemExit("WHISPER_MODEL is not set; it names the folder of a Whisper in CTranslate2 form")
    return Path(os.environ["WHISPER_MODEL"])


def clips(num_words: int) -> list[Clip]:
    """Return all clips, each clean and noisy, in random order."""
    clean = [*real(joined=_JOINED), *synthetic(num_words)]
    rng = random.Random(7)
    others = [rng.choice(clean).waveform for _ in clean]
    made = [*clean, *(noisy(clip, other) for clip, other in zip(clean, others, strict=True))]
    rng.shuffle(made)
    return made


def _measured(
    model: Path, folder: Path | None, conditions: Sequence[tuple[str, int]], num_words: int, minutes: float
) -> list[Row]:
    """Return the results of all conditions, those of earlier runs in the folder included."""
    until = time.monotonic() + 60 * minutes
    made = clips(num_words)
    for compute_type, beam in conditions:
        rows = [] if folder is None else kept(folder / f"{compute_type}-{beam}.jsonl")
        done = {row["clip"] for row in rows}
        transcribers = transcribers_of(model, compute_type, beam)
        for number, clip in enumerate(made):
            if time.monotonic() > until:
                break
            if clip.name not in done:
                turn = WINDOWS if number % 2 else WINDOWS[::-1]
                row = {"type": compute_type, "beam": beam, **both_windows(transcribers, clip, turn)}
                rows.append(row)
                if folder is not None:
                    keep(folder / f"{compute_type}-{beam}.jsonl", row)
        if folder is None:
            return rows
    return [row for path in sorted(folder.glob("*.jsonl")) for row in kept(path)] if folder else []


def transcribers_of(model: Path, compute_type: str, beam: int) -> dict[AsrWindow, WhisperTranscriber]:
    """Load the model once for each window."""
    options: dict[str, Any] = {"device": "cpu", "compute_type": compute_type, "beam_size": beam, "num_threads": 1}
    return {window: WhisperTranscriber(model, window=window, **options) for window in WINDOWS}


def both_windows(
    transcribers: Mapping[AsrWindow, WhisperTranscriber], clip: Clip, turn: Iterable[AsrWindow]
) -> dict[str, Any]:
    """Transcribe a clip with both windows, without the rules against invented words."""
    row: dict[str, Any] = {name: getattr(clip, name) for name in ("kind", "noisy", "language", "text", "duration_s")}
    row |= {"clip": clip.name, "speech_s": speech_seconds(clip.waveform)}
    detect = random.Random(clip.name).random() < _DETECTED_SHARE
    for window in turn:
        started = time.process_time()
        transcript = transcribers[window].transcribe(clip.waveform, clip.language)
        row[window] = {
            "cpu_s": time.process_time() - started,
            "text": transcript.text,
            "errors": word_errors(clip.text, normalised(transcript.text, clip.language)),
            "avg_logprob": transcript.avg_logprob,
            "no_speech_prob": transcript.no_speech_prob,
            "compression_ratio": transcript.compression_ratio,
            "detected": transcribers[window].transcribe(clip.waveform, None).language if detect else None,
        }
    return row


def word_errors(reference: str, hypothesis: str) -> int:
    """Return the number of words that differ."""
    if not reference:
        return len(hypothesis.split())
    counted = jiwer.process_words(reference, hypothesis)
    return int(counted.substitutions + counted.deletions + counted.insertions)


def kept(path: Path) -> list[Row]:
    """Read the results of earlier runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def keep(path: Path, row: Row) -> None:
    """Add a result to those of earlier runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class Paired:
    """Both windows' results for some clips.

    Attributes:
        counts: float64 [N, 3], words, errors of full windows, errors of short windows, by clip.
    """

    counts: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Paired:
        """Count the words and errors of rows."""
        columns = [(len(row["text"].split()), row["full"]["errors"], row["short"]["errors"]) for row in rows]
        return cls(np.array(columns, np.float64).reshape(-1, 3))

    @property
    def rates(self) -> tuple[float, float]:
        """Return both word error rates in percent."""
        words, full, short = self.counts.sum(axis=0)
        return 100 * full / words, 100 * short / words

    def interval(self) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of short minus full, in points; clips are resampled."""
        rng = np.random.default_rng(17)
        size = len(self.counts)
        sums = np.array([self.counts[rng.integers(size, size=size)].sum(axis=0) for _ in range(_RESAMPLES)])
        low, high = np.percentile(100 * (sums[:, 2] - sums[:, 1]) / sums[:, 0], [2.5, 97.5])
        return float(low), float(high)


def table(rows: Sequence[Row]) -> Result:
    """Return the comparison by condition, by clip length and by noise."""
    lines = [_line(name, list(some)) for name, some in _groups(rows) if len(some) > 1]
    default = [row for row in rows if (row["type"], row["beam"]) == ("int8", 1)]
    _, high = Paired.of(default or rows).interval()
    notes = [
        "Both windows on each clip in turn, one thread, greedy or beam search without timestamps; WER: word error rate with "
        "the language given; CPU: mean seconds of this process for a clip, windows of silence and texts that are transcribed "
        "again in a full window included; median: of the clips' own ratios.",
        "Real clips with a text, the same joined, and sentences of the demo's grammar spoken by espeak-ng, English and "
        "Spanish, 0.5 to 29 s; noisy: each again with white, pink or brown noise, hum or two other voices at 8 to 25 dB.",
        "Difference: short minus full in points of WER, with its 95 % interval from 10,000 resamples of clips.",
        f"int8, beam 1, all clips: the upper bound is {high:.2f} points; up to {_GATE} points short windows are the default.",
    ]
    notes += [sentence for window in WINDOWS for sentence in _types(rows, window)]
    return Result("Short Whisper windows against windows of 30 s", _COLUMNS, lines, notes, {"upper_bound": high})


_COLUMNS = (
    *("clips", "number", "words", "WER full", "WER short", "difference (95 %)", "identical", "language agrees"),
    *("CPU full", "CPU short", "full / short, mean", "median"),
)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for number, (kind, beam) in enumerate(sorted({(row["type"], row["beam"]) for row in rows}, key=_default_first)):
        some = [row for row in rows if (row["type"], row["beam"]) == (kind, beam)]
        name = f"{kind}, beam {beam}"
        yield f"{name}: all", some
        for noise in (False, True):
            yield f"{name}: {'noisy' if noise else 'clean'}", [row for row in some if row["noisy"] == noise]
        for origin in ("real", "joined", "synthetic"):
            yield f"{name}: {origin}", [row for row in some if row["kind"] == origin]
        if number:
            continue  # one condition by length and language
        for language in sorted({row["language"] for row in some}):
            yield f"{name}: {language}", [row for row in some if row["language"] == language]
        for low, high in itertools.pairwise(_BINS_S):
            yield f"{name}: {low:.0f} to {high:.0f} s", [row for row in some if low < row["duration_s"] <= high]


def _default_first(condition: tuple[str, int]) -> tuple[bool, int, str]:
    kind, beam = condition
    return kind != "int8", beam, kind


def _types(rows: Sequence[Row], window: AsrWindow) -> Iterator[str]:
    """Yield a sentence that compares int8 with float32 on the clips that both transcribed greedily."""
    by_type = {
        kind: {row["clip"]: row for row in rows if (row["type"], row["beam"]) == (kind, 1)}
        for kind in ("float32", "int8")
    }
    both = sorted(by_type["float32"].keys() & by_type["int8"].keys())
    if len(both) < 2:
        return
    pairs = [(by_type["float32"][clip], by_type["int8"][clip]) for clip in both]
    paired = Paired(
        np.array([(len(a["text"].split()), a[window]["errors"], b[window]["errors"]) for a, b in pairs], np.float64)
    )
    (slow, fast), (low, high) = paired.rates, paired.interval()
    faster = np.median([a[window]["cpu_s"] / b[window]["cpu_s"] for a, b in pairs])
    yield (
        f"int8 against float32, {window} windows, {len(both)} clips and {paired.counts[:, 0].sum():,.0f} words: WER {fast:.2f} % "
        f"and {slow:.2f} %, difference {fast - slow:+.2f} ({low:+.2f} to {high:+.2f}); {faster:.1f}x the speed (median)."
    )


def _line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    paired = Paired.of(rows)
    full, short = paired.rates
    low, high = paired.interval()
    same = sum(normalised(row["full"]["text"], "") == normalised(row["short"]["text"], "") for row in rows)
    detected = [row for row in rows if row["full"]["detected"] is not None]
    agreeing = sum(row["full"]["detected"] == row["short"]["detected"] for row in detected)
    cpu = {window: np.mean([row[window]["cpu_s"] for row in rows]) for window in WINDOWS}
    return (
        name,
        f"{len(rows):,}",
        f"{paired.counts[:, 0].sum():,.0f}",
        f"{full:.2f} %",
        f"{short:.2f} %",
        f"{short - full:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{same / len(rows):.1%}",
        f"{agreeing} of {len(detected)}",
        f"{cpu['full']:.2f} s",
        f"{cpu['short']:.2f} s",
        f"{cpu['full'] / cpu['short']:.1f}x",
        f"{np.median([row['full']['cpu_s'] / row['short']['cpu_s'] for row in rows]):.1f}x",
    )


if __name__ == "__main__":
    main()

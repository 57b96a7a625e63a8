"""Words that Whisper invents without speech, and speech that the rules against them lose, before and after.

usage: python -m benchmarks.invented_words [--sounds N] [--minutes M]

Needs what `benchmarks.asr_window` needs, and uses its results for speech; NOISE_FILES adds recordings without speech.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from benchmarks.asr_window import WINDOWS, Row, both_windows, keep, kept, transcribers_of, whisper_model
from benchmarks.harness import RESULTS, Result, publish
from benchmarks.speech_clips import Clip, synthetic, without_speech
from pipeline.models.judgement import judge, judge_as_whisper
from pipeline.models.transcription import Transcript

_SOUNDS = 12
_WORDS_OF_BABBLE = 600
_SPEECH, _SILENT = RESULTS / "asr_window" / "int8-1.jsonl", RESULTS / "invented_words.jsonl"


def main() -> None:
    """Transcribe what is missing, and write the table of everything so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.invented_words", description=__doc__.splitlines()[0])
    parser.add_argument("--sounds", type=int, default=_SOUNDS, help="clips of each kind of sound")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop measuring after so long")
    asked = parser.parse_args()
    started = time.perf_counter()
    _measure(asked.sounds, asked.minutes)
    result = table(kept(_SPEECH), kept(_SILENT))
    print("\n".join("  ".join(row) for row in [result.columns, *result.rows, *([note] for note in result.notes)]))
    publish("invented_words", result, took_s=time.perf_counter() - started)


def _measure(sounds: int, minutes: float) -> None:
    until = time.monotonic() + 60 * minutes
    transcribers = transcribers_of(whisper_model(), "int8", 1)
    done = {row["clip"] for row in kept(_SILENT)}
    for clip in _sounds(sounds):
        if time.monotonic() > until:
            return
        if clip.name not in done:
            keep(_SILENT, both_windows(transcribers, clip, WINDOWS))


def _sounds(count: int) -> Iterator[Clip]:
    yield from without_speech(count, list(islice(synthetic(_WORDS_OF_BABBLE), 40)))


def table(speech: Sequence[Row], silent: Sequence[Row]) -> Result:
    """Return misses and false alarms of the old and the new rules, by window and kind of sound."""
    lines = []
    for window in WINDOWS:
        for kind in dict.fromkeys(row["kind"] for row in silent):
            rows = [row for row in silent if row["kind"] == kind]
            lines.append((window, kind, *_counts(rows, window)))
        for noise, name in ((False, "speech, clean"), (True, "speech, noisy")):
            rows = [row for row in speech if row["noisy"] == noise]
            lines.append((window, name, *_counts(rows, window)))
    return Result(
        title="Invented words",
        columns=("window", "sound", "clips", "no rule", "before", "now", "flags now"),
        rows=lines,
        notes=[
            "Clips with words, of those without speech (each is a miss), and of speech (each that is missing is a false alarm). "
            "before: voice activity, and Whisper's own rule; now: `pipeline/models/invented.py`; whisper base, int8, greedy.",
            "Babble: eight synthetic voices at once, backwards. Recorded: pieces of 5 s of NOISE_FILES.",
        ],
    )


def _counts(rows: Sequence[Row], window: str) -> tuple[str, ...]:
    with_words, before, now, flags = 0, 0, 0, []
    for row in rows:
        transcript = _transcript(row[window], row["language"])
        with_words += bool(transcript.text)
        before += bool(row["speech_s"] and judge_as_whisper(transcript, duration_s=row["duration_s"]).text)
        judged, flag = judge(transcript, duration_s=row["duration_s"], speech_s=row["speech_s"])
        now += bool(judged.text)
        flags.append(str(flag))
    named = ", ".join(f"{flags.count(flag)} {flag}" for flag in sorted(set(flags)))
    return f"{len(rows)}", f"{with_words}", f"{before}", f"{now}", named


def _transcript(figures: dict[str, Any], language: str) -> Transcript:
    names = ("text", "avg_logprob", "no_speech_prob", "compression_ratio")
    return Transcript(language=language, **{name: figures[name] for name in names})


if __name__ == "__main__":
    main()

"""Error and cost of the times of words (`--words`), on speech whose word times espeak-ng states.

usage: python -m benchmarks.words [--sentences N]

Needs espeak-ng, and a Whisper in CTranslate2 form in WHISPER_MODEL (`benchmarks.asr_window`). Sentences of the demo's grammar,
with up to a second of silence before and after, alone or two with a pause between them, clean and noisy. One thread.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.asr_window import WINDOWS, whisper_model
from benchmarks.harness import ROOT, Result, publish
from benchmarks.speech_clips import Clip, noisy, normalised
from demo.models import MODELS
from pipeline import SAMPLING_RATE
from pipeline.models.whisper import WhisperTranscriber
from pipeline.models.words import Word
from tools.demo_models.acting import act, draw_speaker
from tools.demo_models.grammar import LANGUAGES, draw, emotions_of

_SENTENCES = 300
_SEED = 23
_AIM_S = 0.2
"""Largest median error to reach."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A clip, and the start and end of each of its words in seconds."""

    clip: Clip
    spans_s: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Measurements of one window.

    Attributes:
        start_s: error of the starts in seconds, one for each word that was transcribed right; `end_s` likewise.
        after_pause: whether the word follows the silence at the beginning or the pause in the middle.
        plain_s: CPU seconds of each clip without word times; `timed_s` with them.
    """

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    after_pause: NDArray[np.bool_]
    plain_s: NDArray[np.float64]
    timed_s: NDArray[np.float64]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.words", description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=_SENTENCES)
    asked = parser.parse_args()
    started = time.perf_counter()
    result = table(whisper_model(), asked.sentences)
    print("\n".join("  ".join(row) for row in [result.columns, *result.rows, *([note] for note in result.notes)]))
    publish("words", result, took_s=time.perf_counter() - started)


def run(*, quick: bool) -> Result:
    """Measure; quick: a few sentences with the demo's Whisper."""
    return table(ROOT / MODELS / "whisper", 4) if quick else table(whisper_model(), _SENTENCES)


def table(model: Path, sentences: int) -> Result:
    """Return errors and cost by window, and by place of the word."""
    clips = list(timed_clips(sentences))
    lines, medians = [], {}
    for window in WINDOWS:
        plain, timed = (
            WhisperTranscriber(model, device="cpu", compute_type="int8", window=window, num_threads=1, words=words)
            for words in (False, True)
        )
        measured = measure(plain, timed, clips)
        for name, some in (
            ("all words", np.ones(len(measured.start_s), bool)),
            ("after silence", measured.after_pause),
            ("within speech", ~measured.after_pause),
        ):
            errors = [_quantiles(values[some]) for values in (measured.start_s, measured.end_s)]
            lines.append(
                (
                    window,
                    name,
                    f"{some.sum():,}",
                    *errors[0],
                    *errors[1],
                    *(_cost(measured) if name == "all words" else ("", "")),
                )
            )
        medians[f"median_start_s_{window}"] = float(np.median(np.abs(measured.start_s)))
    return Result(
        title="Times of words",
        columns=(
            "window",
            "words",
            "number",
            "start: median error",
            "90 %",
            "end: median error",
            "90 %",
            "CPU",
            "cost of times",
        ),
        rows=lines,
        notes=[
            f"{len(clips)} clips of {np.mean([each.clip.duration_s for each in clips]):.1f} s, English and Spanish, clean and "
            "noisy (8 to 25 dB), one thread, int8, greedy; words that were transcribed right are compared with espeak-ng's own "
            "events.",
            "after silence: the first word, after 0 to 1 s of silence, and the first after a pause of 0.3 to 1 s; CPU: seconds "
            "of a clip without times; cost: the difference with times, both on each clip in turn.",
            f"Aim: a median error of at most {_AIM_S} s.",
        ],
        figures=medians,
    )


def timed_clips(sentences: int) -> Iterator[Timed]:
    """Yield clips of one or two sentences; every second one is noisy."""
    rng, made = random.Random(_SEED), 0
    while made < sentences:
        language = rng.choice(LANGUAGES)
        speaker = draw_speaker(rng, language, "test")
        pieces, texts, spans, at = [], [], [], 0.0
        for number in range(rng.choice((1, 2))):
            silence_s = rng.uniform(0.3, 1.0) if number else rng.uniform(0.0, 1.0)
            sentence = draw(rng, language, rng.choice(emotions_of(language)), "train")
            take = act(rng, sentence, speaker, "neutral", strength=0)
            pieces += [np.zeros(round(silence_s * SAMPLING_RATE), np.float32), take.samples]
            at += len(pieces[-2]) / SAMPLING_RATE
            spans += [(at + start, at + end) for start, end in take.word_spans_s]
            at += len(take.samples) / SAMPLING_RATE
            texts.append(sentence.text)
            made += 1
        pieces.append(np.zeros(round(rng.uniform(0.0, 1.0) * SAMPLING_RATE), np.float32))
        clip = Clip(f"timed-{made}", np.concatenate(pieces), language, " ".join(texts), "synthetic")
        yield Timed(noisy(clip, clip.waveform[::-1]) if made % 2 else clip, tuple(spans))


def measure(plain: WhisperTranscriber, timed: WhisperTranscriber, clips: Sequence[Timed]) -> Figures:
    """Transcribe each clip without and with times, in turn."""
    errors: list[tuple[float, float]] = []
    after_pause: list[bool] = []
    seconds: dict[WhisperTranscriber, list[float]] = {plain: [], timed: []}
    for number, each in enumerate(clips):
        words: tuple[Word, ...] | None = ()
        for transcriber in (plain, timed) if number % 2 else (timed, plain):
            started = time.process_time()
            transcript = transcriber.transcribe(each.clip.waveform, each.clip.language)
            seconds[transcriber].append(time.process_time() - started)
            words = transcript.words if transcriber is timed else words
        for word, (start_s, end_s), follows in _matched(words or (), each):
            errors.append((word.start_s - start_s, word.end_s - end_s))
            after_pause.append(follows)
    starts, ends = np.array(errors).T
    return Figures(starts, ends, np.array(after_pause), np.array(seconds[plain]), np.array(seconds[timed]))


def _matched(words: Sequence[Word], timed: Timed) -> Iterator[tuple[Word, tuple[float, float], bool]]:
    """Yield the words that are right, with their true span, and whether they follow silence."""
    language = timed.clip.language
    spoken = timed.clip.text.split()
    found = [normalised(word.word, language) for word in words]
    blocks = SequenceMatcher(None, [normalised(word, language) for word in spoken], found, autojunk=False)
    for block in blocks.get_matching_blocks():
        for place in range(block.a, block.a + block.size):
            before_s = timed.spans_s[place - 1][1] if place else 0.0
            follows = place == 0 or timed.spans_s[place][0] - before_s > 0.25
            yield words[block.b + place - block.a], timed.spans_s[place], follows


def _quantiles(errors: NDArray[np.float64]) -> tuple[str, str]:
    median, most = np.quantile(np.abs(errors), (0.5, 0.9)) if len(errors) else (np.nan, np.nan)
    return f"{median:.2f} s", f"{most:.2f} s"


def _cost(measured: Figures) -> tuple[str, str]:
    plain, timed = measured.plain_s.mean(), measured.timed_s.mean()
    return f"{plain:.2f} s", f"{timed - plain:.3f} s ({timed / plain - 1:.0%})"


if __name__ == "__main__":
    main()

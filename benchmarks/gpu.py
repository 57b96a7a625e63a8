"""Speed of the emotion models at their published sizes on a GPU, by precision, batch and clip length, against the device's limit.

usage: python -m benchmarks.gpu [--device cuda] [--whisper DIR] [--quick]      needs torch and transformers; no Ray, no hub

Weights are random in the published shapes, so that speed, memory and exactness are meaningful, and labels are not. The floor
is arithmetic: 0.24 TFLOP for 4 s and 1.96 for 30 s of Wav2Vec2-BERT, over the rate at which this device multiplies large
matrices in the same precision, measured here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.asr_window import Paired, word_errors
from benchmarks.harness import ROOT, Result, machine
from benchmarks.speech_clips import normalised
from benchmarks.workload import published_models, small_models
from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import PRECISIONS, EmotionRecogniser, Recognised
from pipeline.models.transcription import Transcript
from pipeline.models.whisper import WhisperTranscriber

_TFLOP = {4.0: 0.24, 30.0: 1.96}
_ROUNDS = 3
_WHISPER_TYPES = {"cpu": "int8", "cuda": "float16"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--whisper", type=Path, metavar="DIR", help="also compare the windows of this CTranslate2 Whisper"
    )
    parser.add_argument("--quick", action="store_true", help="small models, few clips: does it run?")
    asked = parser.parse_args()
    result = run(device=asked.device, quick=asked.quick)
    for each in [result, *([windows(asked.whisper, asked.device)] if asked.whisper else [])]:
        for row in (each.columns, *each.rows):
            print("| " + " | ".join(row) + " |")
        print("\n".join(each.notes))
    print(machine())


def run(*, device: str, quick: bool) -> Result:
    """Measure each precision, clip length and batch against fp32 with one clip per pass."""
    models = small_models() if quick else published_models()
    rows, notes = [], []
    for clip_s in (4.0,) if quick else _TFLOP:
        work = _Work(clip_s, *_utterances(clip_s, 8 if quick else 128))
        for precision, dtype in PRECISIONS.items():  # fp32 first, batch 1 first: what the others are held against
            if precision == "int8" and device != "cpu":
                continue
            checkpoints = resolve(str(models.fusion)), resolve(str(models.encoder))
            recogniser = EmotionRecogniser("mean", *checkpoints, device=device, precision=precision, max_batch_s=1e9)
            tflops = _matrix_tflops(device, dtype)
            for batch in (1, 4) if quick else (1, 8, 32, 64):
                rows.append((f"{clip_s:.0f} s", precision, *work.measured(recogniser, batch, tflops=tflops)))
            planned = f"{recogniser.runner.model.declaration.bytes_per_s / 1e6:.1f} MB planned for a padded second"
            notes.append(f"{clip_s:.0f} s, {precision}: 8 clips in one batch, {_stages(recogniser, work)}; {planned}")
            del recogniser
    return Result(
        title="Emotion models on a GPU",
        columns=(
            *("clip", "precision", "batch", "clips/s", "audio h/h"),
            *("of the floor", "peak GiB", "labels that flip", "score error"),
        ),
        rows=rows,
        notes=notes,
    )


def windows(model: Path, device: str) -> Result:
    """Compare short Whisper windows with full ones: speed, and errors on the demo's held-out sentences."""
    heldout = ROOT / "demo" / "heldout"
    lines = [json.loads(line) for line in (heldout / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["heldout"] in ("sentences", "voices")]
    waveforms = [decode((heldout / line["audio"]).read_bytes()) for line in lines]
    languages = [line["language"] for line in lines]
    rows, errors = [], []
    for window in ("full", "short"):
        transcriber = WhisperTranscriber(model, device=device, compute_type=_WHISPER_TYPES[device], window=window)
        texts = [
            each.text for each in transcriber.transcribe_many(waveforms, languages) if isinstance(each, Transcript)
        ]
        run = partial(transcriber.transcribe_many, waveforms, languages)
        seconds = min(_timed(run) for _ in range(_ROUNDS))
        pairs = [
            (line["reference"], normalised(text, line["language"])) for line, text in zip(lines, texts, strict=True)
        ]
        errors.append([word_errors(*pair) for pair in pairs])
        audio_h = sum(map(len, waveforms)) / SAMPLING_RATE / 3600
        rows.append((window, f"{len(lines) / seconds:.1f}", f"{audio_h / seconds * 3600:,.0f}", f"{sum(errors[-1]):,}"))
    counts = [(len(line["reference"].split()), *pair) for line, *pair in zip(lines, *errors, strict=True)]
    paired = Paired(np.array(counts, np.float64))
    full, short = paired.rates
    low, high = paired.interval()
    note = f"WER {full:.2f} % and {short:.2f} %; short minus full, 95 %: {low:+.2f} to {high:+.2f} points; 0.5 at most for `auto`"
    return Result("Whisper's windows", ("window", "clips/s", "audio h/h", "word errors"), rows, [note])


def _utterances(clip_s: float, count: int) -> tuple[list[NDArray[np.float32]], list[str]]:
    random = np.random.default_rng(11)
    size = round(clip_s * SAMPLING_RATE)
    envelope = np.abs(np.sin(np.linspace(0, 3 * clip_s, size)))
    noise = [(0.1 * envelope * random.standard_normal(size)).astype(np.float32) for _ in range(count)]
    return noise, [f"This is sentence number {number} of a call that goes on." for number in range(count)]


@dataclass
class _Work:
    """Clips of one length, and their results in fp32 one at a time."""

    clip_s: float
    waveforms: list[NDArray[np.float32]]
    texts: list[str]
    exact: Recognised | None = None

    def run(self, recogniser: EmotionRecogniser, batch: int) -> Recognised:
        recogniser.runner.batcher.max_batch = batch
        return recogniser.recognise(self.waveforms, self.texts)

    def measured(self, recogniser: EmotionRecogniser, batch: int, *, tflops: float) -> tuple[str, ...]:
        """Measure speed, memory and exactness of one batch size."""
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        found = self.run(recogniser, batch)
        self.exact = self.exact or found
        seconds = min(_timed(lambda: self.run(recogniser, batch)) for _ in range(_ROUNDS))
        count, clips_per_s = len(self.waveforms), len(self.waveforms) / seconds
        flips = sum(a != b for a, b in zip(found.labels, self.exact.labels, strict=True))
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
        return (
            f"{batch}",
            f"{clips_per_s:.1f}",
            f"{clips_per_s * self.clip_s:,.0f}",
            f"{clips_per_s * _TFLOP[self.clip_s] / tflops:.0%}",
            f"{peak:.1f}",
            f"{flips} of {count}",
            f"{np.abs(found.scores - self.exact.scores).max():.1e}",
        )


def _stages(recogniser: EmotionRecogniser, work: _Work) -> str:
    waveforms, texts = work.waveforms[:8], work.texts[:8]
    with torch.inference_mode():
        model = recogniser.runner.model
        features, mask = model.features(waveforms)
        read = torch.from_numpy(model.text.run(texts).embedding).to(features.device)
        steps = {
            "filter banks": lambda: model.features(waveforms),
            "text": lambda: model.text.run(texts),
            "audio and fusion": lambda: model.network(features, mask, read),
        }
        taken = {name: min(_timed(step) for _ in range(_ROUNDS)) for name, step in steps.items()}
    return ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in taken.items())


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _matrix_tflops(device: str, dtype: torch.dtype, size: int = 4096) -> float:
    """Return the TFLOP/s of a large matrix product."""
    if device == "cpu":
        size = 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    seconds = min(_timed(lambda: [a @ b for _ in range(4)]) for _ in range(_ROUNDS)) / 4
    return 2 * size**3 / seconds / 1e12


if __name__ == "__main__":
    main()

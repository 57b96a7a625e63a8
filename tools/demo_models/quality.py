"""Quality of the small models on held-out sentences and voices, measured with the pipeline's own classes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jiwer
import numpy as np
from numpy.typing import NDArray

from pipeline.audio.segmentation import Cuts, cut
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.networks.fusion import AUDIO_MODES
from pipeline.models.whisper import WhisperTranscriber
from tools.demo_models.acting import draw_speaker
from tools.demo_models.corpus import Clips, read
from tools.demo_models.degrade import degrade
from tools.demo_models.grammar import LANGUAGES
from tools.demo_models.heldout import say

SETS = {"test_sentences": "new sentences, known voices", "test_voices": "new sentences, new voices"}
MODES = (*AUDIO_MODES, "text")
_CLIPS, _JOINED_FILES = 200, 30
"""Number of clips of each language in each set."""
_PROCESSES = 2
_WORD = re.compile(r"[\w']+")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured share, with its name, language, set and number of clips."""

    what: str
    language: str
    set: str
    value: float
    clips: int


def words(text: str) -> str:
    """Normalise a text for the word error rate: lower case, no punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Return the word error rate over all texts: substitutions, deletions and insertions over the words of the references."""
    return float(jiwer.wer([words(text) for text in references], [words(text) for text in transcripts]))


def measure(models: Path, corpus: Path, *, seed: int) -> list[Figure]:
    """Measure every figure, in about four minutes on two cores."""
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_measure_set, models, corpus, name, seed) for name in SETS]
        tasks.append(pool.submit(_measure_joined, models, seed))
        return [figure for task in tasks for figure in task.result()]


def _transcriber(models: Path) -> WhisperTranscriber:
    return WhisperTranscriber(models / "whisper", device="cpu", compute_type="float32", num_threads=1)


def _measure_set(models: Path, corpus: Path, name: str, seed: int) -> list[Figure]:
    """Measure words and emotions of single clips."""
    hear = _transcriber(models).transcribe
    clips = read(corpus, name)
    rng = np.random.default_rng(seed)
    figures = []
    for language in LANGUAGES:
        rows = [i for i, clip in enumerate(clips.clips) if clip.language == language][:_CLIPS]
        spoken = [clips.clips[i].text for i in rows]
        padded = [np.pad(clips.waveform(i), (1_600, 3_200)) for i in rows]
        clean = [hear(waveform, language).text for waveform in padded]
        degraded = [hear(degrade(rng, waveform), language).text for waveform in padded]
        figures += [
            Figure("word error rate", language, name, word_error_rate(spoken, clean), len(rows)),
            Figure("word error rate, degraded", language, name, word_error_rate(spoken, degraded), len(rows)),
        ]
        figures += _emotions(models, clips, rows, language=language, name=name, transcripts=clean)
    return figures


def _emotions(
    models: Path, clips: Clips, rows: list[int], *, language: str, name: str, transcripts: Sequence[str]
) -> list[Figure]:
    """Measure the accuracy of each mode with the spoken text, and of the default mode with the transcript."""
    encoder = resolve(str(models / "sentence-encoder"))
    waveforms = [clips.waveform(i) for i in rows]
    truth = [clips.clips[i].emotion for i in rows]
    spoken = [clips.clips[i].text for i in rows]
    figures = []
    for mode in MODES:
        checkpoint = resolve(str(models / f"{mode}-{language}"))
        recogniser = EmotionRecogniser(mode, checkpoint, encoder, num_threads=1)
        trials = {
            f"accuracy, {mode}": spoken,
            **({f"accuracy, {mode}, transcript": transcripts} if mode == "mean" else {}),
        }
        for what, texts in trials.items():
            found = recogniser.recognise(waveforms, texts)
            emotions = [recogniser.emotions[best] for best in found.scores.argmax(axis=1)]
            right = float(np.mean([a == b for a, b in zip(emotions, truth, strict=True)]))
            figures.append(Figure(what, language, name, right, len(rows)))
    return figures


def _measure_joined(models: Path, seed: int) -> list[Figure]:
    """Measure the word error rate of four to six sentences by new voices, cut by voice activity and not."""
    hear = _transcriber(models).transcribe
    rng = random.Random(seed)
    figures = []
    for language in LANGUAGES:
        spoken, cut_transcripts, whole_transcripts = [], [], []
        for number in range(_JOINED_FILES):
            speakers = [draw_speaker(rng, language, "test") for _ in range(2)]
            pieces, turns = say(rng, speakers, language, str(number), rng.randint(4, 6))
            waveform: NDArray[np.float32] = np.concatenate([piece for _, piece in pieces])
            spoken.append(" ".join(turn.reference for turn in turns))
            spans = cut(waveform, Cuts(segmentation="vad"), has_text=False)
            cut_transcripts.append(" ".join(hear(waveform[s.start : s.end], language).text for s in spans))
            whole_transcripts.append(hear(waveform[: 30 * 16_000], language).text)
        figures += [
            Figure(
                "word error rate, 4 to 6 sentences, cut",
                language,
                "test_voices",
                word_error_rate(spoken, cut_transcripts),
                _JOINED_FILES,
            ),
            Figure(
                "word error rate, 4 to 6 sentences, in one window",
                language,
                "test_voices",
                word_error_rate(spoken, whole_transcripts),
                _JOINED_FILES,
            ),
        ]
    return figures


def write(figures: Sequence[Figure], target: Path, *, minutes: float) -> None:
    """`quality.json`, and the table of `README.md`, beside the weights."""
    records = [{name: getattr(figure, name) for name in Figure.__slots__} for figure in figures]
    (target / "quality.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    columns = [(language, name) for name in SETS for language in LANGUAGES]
    lines = [f"| percent | {' | '.join(f'{language}, {SETS[name]}' for language, name in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for what in dict.fromkeys(figure.what for figure in figures):
        found = {(f.language, f.set): f for f in figures if f.what == what}
        cells = [f"{100 * found[c].value:.1f} ({found[c].clips})" if c in found else "" for c in columns]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    text = _README.format(table="\n".join(lines), minutes=minutes)
    (target / "README.md").write_text(text, encoding="utf-8")


_README = """# Small models for trying the pipeline

They know a few hundred English and Spanish words in the synthetic voices of espeak-ng, and emotions acted by a program
(rate, pitch, contour, loudness, pauses). **They are for trying and testing the pipeline only**: on a person's voice
they are worth nothing. Leave out the model options of `jobs.annotate` and the published models are used.

`whisper/` is Whisper's architecture in CTranslate2 form; `<mode>-<language>/` are Wav2Vec2-BERT + BERT in the published
layout, `text-<language>/` the text mode; they share `acoustic-encoder.safetensors` and `sentence-encoder/`, the frozen BERT,
through links. All fp16.

`make demo-models` makes all of it, and the recordings in `../heldout` and `../corpus`, from Debian's espeak-ng and fixed
seeds: {minutes:.0f} minutes on 2 cores when this was made. `python -m tools.demo_models --help` has the steps one by one.

Measured on what no model was trained on, clips in brackets. The truth is the emotion that is acted; the wording points
at the same one in 80 % of the clips.

{table}

"degraded": noise at 12 to 45 dB, telephone, dull microphone, MP3. "transcript": the text side gets Whisper's transcript.
"""

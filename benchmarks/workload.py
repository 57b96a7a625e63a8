"""Workload of the benchmarks: clips cut from the project's recordings, checkpoints, and our command as a user types it.

Everything is made once under `build/bench`, a pure function of the recordings in `demo/heldout` and of the parity
configs: no corpus and no weights are downloaded. Checkpoints of the published sizes take 2.8 GB of disk, five of memory
while they are made, and a minute.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import wave
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, ROOT
from demo.models import MODELS
from pipeline.audio.decode import decode
from pipeline.schema import emotion_of
from tests.support.checkpoints import PARITY, materialize

HELDOUT = ROOT / "demo" / "heldout"
RATE = 16_000
SAME_SCORES = 1e-4
"""Largest difference of scores, as in the parity tests in fp32 on CPU."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A 16 kHz 16-bit WAV file, which every decoder reads alike, with its text."""

    id: str
    audio: str
    text: str | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class Models:
    """Directories of an emotion model of mode `mean` and its sentence encoder."""

    fusion: Path
    encoder: Path


class DifferentError(RuntimeError):
    """Raised when variants that must agree differ, or a control that must differ agrees: the timing is then meaningless."""


def require(condition: object, otherwise: str) -> None:
    """Stop the benchmark unless the condition holds. Raises: DifferentError."""
    if not condition:
        raise DifferentError(otherwise)


@cache
def _heldout() -> list[tuple[str, NDArray[np.float32], str]]:
    """Return id, waveform and text of the English held-out sentences, about six minutes."""
    lines = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        (line["id"], decode((HELDOUT / line["audio"]).read_bytes()), line["reference"])
        for line in lines
        if line["language"] == "en" and line["heldout"] == "sentences"
    ]


def sentences() -> list[Clip]:
    """Return the English held-out sentences as clips, with their reference texts."""
    folder = RESULTS / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, waveform, words in _heldout():
        path = folder / f"{name}.wav"
        _write_wav(path, waveform)
        made.append(Clip(name, str(path), words, len(waveform) / RATE))
    return made


def clips(lengths_s: Sequence[float]) -> list[Clip]:
    """Return one clip for each length, cut at different places, each with the text of a sentence.

    The same lengths give the same files. Texts belong to no sound: who asks for speed does not ask for sense.
    """
    speech = np.concatenate([waveform for _, waveform, _ in _heldout()])
    texts = [words for _, _, words in _heldout()]
    folder = RESULTS / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, length_s in enumerate(lengths_s):
        num_samples = round(length_s * RATE)
        start = number * 30_011 % (len(speech) - num_samples)  # a prime near 2 s: thousands of clips, no two alike
        path = folder / f"{number:05d}-{num_samples}.wav"
        if not path.exists():
            _write_wav(path, speech[start : start + num_samples])
        made.append(Clip(f"c{number:05d}", str(path), texts[number % len(texts)], num_samples / RATE))
    return made


def _write_wav(path: Path, waveform: NDArray[np.float32]) -> None:
    partial = path.with_suffix(".partial")
    with wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(waveform, -1, 1) * 32_767).astype("<i2").tobytes())
    partial.rename(path)


def write_manifest(path: Path, given: Sequence[Clip]) -> Path:
    """Write a JSONL manifest without durations, which the other variants do not get either."""
    rows = [{"id": clip.id, "audio": clip.audio, "text": clip.text, "language": "en"} for clip in given]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_models() -> Models:
    """Return the parity checkpoints: a three-layer encoder under the published names."""
    folder = materialize()
    return Models(folder / "mean-en", folder / "bert-en")


def trained_models() -> Models:
    """Return the demo's checkpoints: small, but with realistic margins between labels."""
    return Models(ROOT / MODELS / "mean-en", ROOT / MODELS / "sentence-encoder")


def published_models() -> Models:
    """Return Wav2Vec2-BERT 2.0 and BERT base in their published shapes with random weights, created at first use.

    Sizes: facebook/w2v-bert-2.0 and google-bert/bert-base-uncased, from their public configs.
    """
    folder, configs = RESULTS / "published", RESULTS / "published-configs"
    if not (folder / "COMPLETE").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(configs, ignore_errors=True)
        encoder = {"hidden_size": 1024, "output_hidden_size": 1024, "intermediate_size": 4096}
        _resized(configs, "mean-en", {**encoder, "num_hidden_layers": 24, "num_attention_heads": 16})
        _resized(configs, "bert-en", {"num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 30_522})
        _teach_words(configs / "bert-en" / "tokenizer.json")
        argv, path = sys.argv, list(sys.path)
        sys.argv = ["materialize.py", str(folder), "--checkpoints", str(configs)]
        sys.path.insert(0, str(PARITY))
        try:
            runpy.run_path(str(PARITY / "materialize.py"), run_name="__main__")
        finally:
            sys.argv, sys.path[:] = argv, path
        (folder / "COMPLETE").touch()
    return Models(folder / "mean-en", folder / "bert-en")


def _resized(configs: Path, name: str, sizes: Mapping[str, int]) -> None:
    shutil.copytree(PARITY / "checkpoints" / name, configs / name)
    path = configs / name / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **sizes}), encoding="utf-8")


def _teach_words(path: Path) -> None:
    """Add the words of our texts to the parity tokenizer, which spells, so that it gives as many tokens as the real one."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for word in sorted({word for _, _, text in _heldout() for word in text.lower().replace("'", " ").split()}):
        vocabulary.setdefault(word, len(vocabulary))
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def annotate_command(manifest: Path, output: Path, models: Sequence[str], *options: str) -> list[str]:
    """Return the command of the job for a manifest."""
    where = ["--manifest", str(manifest), "--output", str(output), "--no-page"]
    return [sys.executable, "-m", "jobs.annotate", *where, *models, *options]


def named(models: Models) -> list[str]:
    """Return the model options of mode mean for rows with texts."""
    return ["--mode", "mean", "--emotion-model", f"en={models.fusion}", "--sentence-encoder", f"en={models.encoder}"]


Scored = dict[str, tuple[str, dict[str, float]]]
"""Label, and score by emotion in our vocabulary, for each clip id."""


def in_our_words(labels: Mapping[str, str], scores: Mapping[str, Mapping[str, float]]) -> Scored:
    """Convert results of another variant to our form."""
    return {key: (label, {emotion_of(n): score for n, score in scores[key].items()}) for key, label in labels.items()}


def annotated(output: Path) -> Scored:
    """Read the output of our job."""
    table = ds.dataset(f"{output}/utterances").to_table(columns=["recording_id", "label", "scores"])
    rows = table.to_pylist()
    return {
        row["recording_id"]: (row["label"], {k: v for k, v in row["scores"].items() if v is not None}) for row in rows
    }


def transcripts(output: Path) -> dict[str, str]:
    """Read the texts that our job used, given or transcribed."""
    table = ds.dataset(f"{output}/utterances").to_table(columns=["recording_id", "text"])
    return {row["recording_id"]: row["text"] for row in table.to_pylist()}


def agree(theirs: Scored, ours: Scored, *, who: str) -> str:
    """Check that labels are equal and scores within `SAME_SCORES`, for every clip of theirs. Returns: a note.

    The control: against the next clip's scores the same comparison must fail.
    Raises: DifferentError.
    """
    require(theirs and set(theirs) <= set(ours), f"{who} did {len(theirs)} clips, of which we lack some")
    flips = [key for key in theirs if theirs[key][0] != ours[key][0]]
    require(not flips, f"{len(flips)} labels differ from those of {who}: {flips[:5]}")
    worst = max(_distance(theirs[key], ours[key]) for key in theirs)
    require(worst <= SAME_SCORES, f"scores differ from those of {who} by {worst:.1e}")
    keys = sorted(theirs)
    shifted = max(_distance(theirs[a], ours[b]) for a, b in zip(keys, keys[1:] + keys[:1], strict=True))
    require(shifted > SAME_SCORES, "the control failed: the next clip's scores agree too, so agreement proves nothing")
    labels = len({label for label, _ in theirs.values()})
    return (
        f"{len(theirs):,} labels ({labels} different) equal to those of {who}, worst score difference {worst:.1e}; "
        f"of neighbouring clips {shifted:.1e}"
    )


def _distance(one: tuple[str, dict[str, float]], two: tuple[str, dict[str, float]]) -> float:
    return max(abs(one[1][emotion] - two[1][emotion]) for emotion in one[1])


def describe(clip: Clip) -> dict[str, object]:
    """Return a clip in the form of a job file."""
    return asdict(clip)

"""Comparison of the whole job with the reference toolkit, which loops over the same files with the same checkpoints.

The toolkit (NLP-UMUTeam/umuteam-speech-emotion) is not part of this project: REFERENCE_TOOLKIT names a checkout of it. It
runs unmodified, in a process of its own, with as many threads as torch takes, twice: as shipped, where each call loads the
classifier again, and with its loaders patched from outside so that they load once. Ours is the command, start to end.

Steady state is, of theirs, the mean of all calls but the first; of ours, the wall time that a larger job takes more than a
smaller one, divided by the clips it has more: everything but the start-up is in it, Ray, fetching and Parquet included. Both
have the same cores; torch threads over both of them there, an actor on each here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import mean

from benchmarks.harness import RESULTS, ROOT, Result, Timing, ratio
from benchmarks.processes import Finished
from benchmarks.processes import run as run_process
from benchmarks.whisper import hugging_face_whisper
from benchmarks.workload import (
    Clip,
    Models,
    Scored,
    agree,
    annotate_command,
    annotated,
    clips,
    describe,
    in_our_words,
    named,
    published_models,
    require,
    sentences,
    small_models,
    transcripts,
    write_manifest,
)
from demo.models import MODELS

FOLDER = RESULTS / "reference"
CLIP_S = 3.5
_AS_REFERENCE = ("--asr-compute-type", "float32", "--asr-window", "full")
"""Options with which Whisper computes what it computes in the reference toolkit."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One run of the command: the process, and for each clip its result and text."""

    process: Finished
    scored: Scored
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """One size of checkpoint.

    Attributes:
        looped: clips in one loop of the reference.
        few, many: clips of the two jobs of ours whose difference is the steady state, whole shards for each actor.
        shard_rows: of ours; None is the default.
        floor: whether to measure the two encoders alone beside it, rather than the whole processes of many clips.
        transcribed: both sides transcribe the held-out sentences with the demo's Whisper; otherwise clips have texts.
    """

    name: str
    models: Models
    looped: int
    few: int
    many: int
    rounds: int
    shard_rows: int | None = None
    floor: bool = False
    transcribed: bool = False

    @property
    def clips(self) -> list[Clip]:
        """Return all clips."""
        if not self.transcribed:
            return clips([CLIP_S] * self.many)
        return [replace(clip, id=f"h{n:05d}") for n, clip in zip(range(self.many), cycle(sentences()), strict=False)]

    def ours(self, count: int, *options: str) -> Ours:
        """Run the command on the first clips, into a new output."""
        shards = () if self.shard_rows is None else ("--shard-rows", str(self.shard_rows))
        model = ("--asr-model", str(ROOT / MODELS / "whisper"))
        asr = (*model, *_AS_REFERENCE) if self.transcribed else ()
        given = [replace(clip, text=None) for clip in self.clips[:count]] if self.transcribed else self.clips[:count]
        return run_ours(write_manifest(FOLDER / f"{count}.jsonl", given), self.models, *shards, *asr, *options)

    def loop(self, kind: str, given: Sequence[Clip], **more: object) -> tuple[Finished, dict[str, object]]:
        """Run the reference, or the models alone, on clips."""
        job = self.write_job(kind, given, **more)
        return _loop(job), _found(job)

    def write_job(self, kind: str, given: Sequence[Clip], *, part: int = 0, threads: int = 0) -> Path:
        """Return the job file of `reference_loop`."""
        job = {
            "kind": kind,
            "checkout": os.environ.get("REFERENCE_TOOLKIT", ""),
            "fusion": str(self.models.fusion),
            "encoder": str(self.models.encoder),
            "whisper": str(hugging_face_whisper()) if self.transcribed else None,
            "threads": threads,
            "clips": [describe(clip) for clip in given],
        }
        path = FOLDER / f"{self.name}-{kind}-{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(job), encoding="utf-8")
        return path


def run(*, quick: bool) -> Result:
    """Compare at both sizes; with `quick` at the small one, on few clips."""
    cases = [Case("small", small_models(), *((2, 2, 6, 1) if quick else (100, 256, 1024, 3)))]
    if not quick:
        cases.append(Case("published", published_models(), 10, 8, 32, 2, shard_rows=4, floor=True))
    notes = [
        f"Clips of {CLIP_S} s, 16 kHz WAV, in the page cache, texts given, mode mean; reference: torch's own number of threads.",
        "Transcription is not in these figures: both sides are given the texts.",
        "Small: the parity checkpoints. Published: w2v-bert 2.0 and BERT base in their shapes with random weights.",
    ]
    return compared("The whole job against the reference toolkit", cases, notes)


def compared(title: str, cases: Sequence[Case], notes: list[str]) -> Result:
    """Measure cases one after another."""
    _require_checkout()
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    for case in cases:
        measured = _Measured(case)
        rows += measured.rows()
        notes += measured.notes
        figures |= measured.figures
    columns = ("checkpoints", "what", "a clip", "as shipped / this", "kept loaded / this")
    return Result(title, columns, rows, notes, figures)


def _require_checkout() -> None:
    named = os.environ.get("REFERENCE_TOOLKIT", "")
    if not named or not (Path(named) / "src" / "speech_emotion" / "inference.py").is_file():
        raise SystemExit(
            "REFERENCE_TOOLKIT must name a checkout of the reference toolkit: "
            "git clone https://github.com/NLP-UMUTeam/umuteam-speech-emotion, then REFERENCE_TOOLKIT=that/folder"
        )


class _Measured:
    """Measurement of one case: each variant once per round."""

    def __init__(self, case: Case) -> None:
        taken: dict[str, list[float]] = {"shipped": [], "kept": [], "ours": [], "small job": [], "large job": []}
        self.notes: list[str] = []
        for number in range(case.rounds):
            theirs: dict[str, Mapping[str, Mapping[str, object]]] = {}
            for kind in ("shipped", "kept") if number % 2 == 0 else ("kept", "shipped"):
                _, found = case.loop(kind, case.clips[: case.looped])
                taken[kind].append(mean(found["clip_s"][1:]))
                theirs[kind] = found
            small_s = case.ours(case.few).process.wall_s
            self.ours = case.ours(case.many)
            large_s = self.ours.process.wall_s
            taken["ours"].append((large_s - small_s) / (case.many - case.few))
            taken["small job"].append(small_s)
            taken["large job"].append(large_s)
            if case.floor:
                floor_s, how = _floor(case)
                taken.setdefault("floor", []).append(floor_s)
                self.notes.append(f"Floor, the stock encoders' forward passes alone at their own lengths: {how}.")
            notes_of_case = [_agree(found, self.ours, who=f"{case.name}, {kind}") for kind, found in theirs.items()]
        self.notes += notes_of_case
        self.case = case
        self.timings = {name: Timing(tuple(seconds), ()) for name, seconds in taken.items()}
        self.figures = {f"{case.name} {name} s": timing.median_s for name, timing in self.timings.items()}

    def rows(self) -> list[list[str]]:
        """Return the lines of the table."""
        name, timings = self.case.name, self.timings
        shipped, kept, ours = timings["shipped"], timings["kept"], timings["ours"]
        rows = [
            [name, "reference as shipped", str(shipped), "1", ""],
            [name, "reference kept loaded", str(kept), ratio(shipped, kept), "1"],
            [name, "ours, steady state", str(ours), ratio(shipped, ours), ratio(kept, ours)],
        ]
        if not self.case.floor:
            return [*rows, *self._whole()]
        floor = timings["floor"]
        self.figures[f"{name} ours / floor"] = ours.median_s / floor.median_s
        self.notes.append(f"Ours takes {ratio(ours, floor)} of the floor; 1.08x or less is the aim.")
        return [*rows, [name, "floor: the two encoders alone", str(floor), ratio(shipped, floor), ratio(kept, floor)]]

    def _whole(self) -> list[list[str]]:
        """Time whole processes on the large job's clips; the reference once, as shipped."""
        count = self.case.many
        theirs, found = self.case.loop("shipped", self.case.clips)
        self.notes.append(_agree(found, self.ours, who=f"{self.case.name}, shipped, all clips"))
        ours = self.timings["large job"]
        times = theirs.wall_s / ours.median_s
        self.figures[f"{self.case.name} whole x"] = times
        what = f"{count:,} clips, whole process"
        return [
            [
                self.case.name,
                f"reference as shipped, {what}: {theirs.wall_s:.1f} s",
                f"{theirs.wall_s / count:.4f} s",
                "1",
                "",
            ],
            [self.case.name, f"ours, {what}: {ours}", f"{ours.median_s / count:.4f} s", f"{times:.2f}x", ""],
        ]


def _agree(found: Mapping[str, Mapping[str, object]], ours: Ours, *, who: str) -> str:
    """Compare like `agree`, on the clips with equal texts on both sides, which must be nearly all."""
    same = {key for key, text in found["texts"].items() if text.strip() == ours.texts[key].strip()}
    require(
        len(same) >= 0.95 * len(found["texts"]) - 1,
        f"only {len(same)} of {len(found['texts'])} texts are those of {who}",
    )
    theirs = in_our_words(found["labels"], found["scores"])
    notes_of_case = agree({key: theirs[key] for key in same}, ours.scored, who=who)
    return (
        notes_of_case
        if len(same) == len(theirs)
        else f"{notes_of_case}; of {len(theirs) - len(same)} more the texts differ"
    )


def _loop(job: Path) -> Finished:
    return run_process([sys.executable, "-m", "benchmarks.reference_loop", str(job)], timeout_s=3600)


def _floor(case: Case) -> tuple[float, str]:
    """Return seconds per clip, with all cores on one clip or a clip on each, whichever is faster."""
    given, cores = case.clips[: case.looped], len(os.sched_getaffinity(0))
    _, together = case.loop("floor", given, threads=cores)
    jobs = [case.write_job("floor", given, part=part, threads=1) for part in range(cores)]
    with ThreadPoolExecutor(cores) as apart:
        list(apart.map(_loop, jobs))
    each = mean(mean(_found(job)["clip_s"][1:]) for job in jobs) / cores
    all_on_one = mean(together["clip_s"][1:])
    how = f"{all_on_one:.3f} s with {cores} threads on one clip, {each:.3f} s with {cores} processes of one thread"
    return min(each, all_on_one), how


def run_ours(manifest: Path, models: Models, *options: str) -> Ours:
    """Run the command into a new output. Returns: the process and its results."""
    output = FOLDER / "out"
    shutil.rmtree(output, ignore_errors=True)
    process = run_process(annotate_command(manifest, output, named(models), *options), timeout_s=3600)
    found = Ours(process, annotated(output), transcripts(output))
    shutil.rmtree(output)
    return found


def _found(job: Path) -> dict[str, object]:
    return json.loads(job.with_suffix(".found").read_text(encoding="utf-8"))

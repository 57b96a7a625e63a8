"""The whole job against the reference toolkit, which loops over the same files with the same checkpoints.

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
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.harness import RESULTS, Result, Timing, ratio
from benchmarks.processes import Finished
from benchmarks.processes import run as run_process
from benchmarks.workload import (
    HELDOUT,
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
    small_models,
    trained_models,
    write_manifest,
)

FOLDER = RESULTS / "reference"
CLIP_S = 3.5


@dataclass(frozen=True, slots=True)
class Case:
    """One size of checkpoint.

    Attributes:
        looped: clips in one loop of the reference.
        few, many: clips of the two jobs of ours whose difference is the steady state, whole shards for each actor.
        shard_rows: of ours; None is the default.
        floor: whether to measure the two encoders alone beside it, rather than the whole processes of many clips.
    """

    name: str
    models: Models
    looped: int
    few: int
    many: int
    rounds: int
    shard_rows: int | None = None
    floor: bool = False

    @property
    def clips(self) -> list[Clip]:
        """All of them."""
        return clips([CLIP_S] * self.many)

    def ours(self, count: int, *options: str) -> tuple[Finished, Scored]:
        """The command over the first clips, into an output of its own."""
        shards = () if self.shard_rows is None else ("--shard-rows", str(self.shard_rows))
        manifest = write_manifest(FOLDER / f"{count}.jsonl", self.clips[:count])
        return run_ours(manifest, self.models, *shards, *options)

    def loop(self, kind: str, given: Sequence[Clip], **more: object) -> tuple[Finished, dict[str, object]]:
        """The reference, or the floor, over clips."""
        job = self.write_job(kind, given, **more)
        return _loop(job), _found(job)

    def write_job(self, kind: str, given: Sequence[Clip], *, part: int = 0, threads: int = 0) -> Path:
        """What `reference_loop` reads."""
        job = {
            "kind": kind,
            "checkout": os.environ.get("REFERENCE_TOOLKIT", ""),
            "fusion": str(self.models.fusion),
            "encoder": str(self.models.encoder),
            "threads": threads,
            "clips": [describe(clip) for clip in given],
        }
        path = FOLDER / f"{self.name}-{kind}-{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(job), encoding="utf-8")
        return path


def run(*, quick: bool) -> Result:
    """Both sizes; `quick` the small one alone, on few clips."""
    _require_checkout()
    cases = [Case("small", small_models(), *((2, 2, 6, 1) if quick else (100, 256, 1024, 3)))]
    if not quick:
        cases.append(Case("published", published_models(), 10, 8, 32, 2, shard_rows=4, floor=True))
    rows: list[list[str]] = []
    notes = [
        f"Clips of {CLIP_S} s, 16 kHz WAV in the page cache, texts given, mode mean; reference: torch's own number of threads.",
        "Transcription is not in these figures: both sides are given the texts.",
        "Small: the parity checkpoints. Published: w2v-bert 2.0 and BERT base in their shapes with random weights.",
    ]
    figures: dict[str, float] = {}
    for case in cases:
        measured = _Measured(case)
        rows += measured.rows()
        notes += measured.notes
        figures |= measured.figures
        if case.name == "published":
            row, note = _lower_precision(case, measured)
            rows.append(row)
            notes.append(note)
    if quick:
        notes.append("quick: the published sizes and bf16 were skipped.")
    else:
        notes.append(_flips_of_trained_models())
    columns = ("checkpoints", "what", "a clip", "as shipped / this", "kept loaded / this")
    return Result("The whole job against the reference toolkit", columns, rows, notes, figures)


def _require_checkout() -> None:
    named = os.environ.get("REFERENCE_TOOLKIT", "")
    if not named or not (Path(named) / "src" / "speech_emotion" / "inference.py").is_file():
        raise SystemExit(
            "REFERENCE_TOOLKIT must name a checkout of the reference toolkit: "
            "git clone https://github.com/NLP-UMUTeam/umuteam-speech-emotion, then REFERENCE_TOOLKIT=that/folder"
        )


class _Measured:
    """The variants of one case, each once a round."""

    def __init__(self, case: Case) -> None:
        taken: dict[str, list[float]] = {"shipped": [], "kept": [], "ours": [], "small job": [], "large job": []}
        self.notes: list[str] = []
        for number in range(case.rounds):
            theirs: dict[str, Scored] = {}
            for kind in ("shipped", "kept") if number % 2 == 0 else ("kept", "shipped"):
                _, found = case.loop(kind, case.clips[: case.looped])
                taken[kind].append(mean(found["clip_s"][1:]))
                theirs[kind] = in_our_words(found["labels"], found["scores"])
            small, _ = case.ours(case.few)
            large, self.ours = case.ours(case.many)
            taken["ours"].append((large.wall_s - small.wall_s) / (case.many - case.few))
            taken["small job"].append(small.wall_s)
            taken["large job"].append(large.wall_s)
            if case.floor:
                floor_s, how = _floor(case)
                taken.setdefault("floor", []).append(floor_s)
                self.notes.append(f"Floor, the stock encoders' forward passes alone at their own lengths: {how}.")
            said = [agree(found, self.ours, who=f"{case.name}, {kind}") for kind, found in theirs.items()]
        self.notes += said
        self.case = case
        self.timings = {name: Timing(tuple(seconds), ()) for name, seconds in taken.items()}
        self.figures = {f"{case.name} {name} s": timing.median_s for name, timing in self.timings.items()}

    def rows(self) -> list[list[str]]:
        """The table's lines."""
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
        """Process start to process end over the large job's clips, the reference once, as shipped."""
        count = self.case.many
        theirs, found = self.case.loop("shipped", self.case.clips)
        said = agree(
            in_our_words(found["labels"], found["scores"]), self.ours, who=f"{self.case.name}, shipped, all clips"
        )
        self.notes.append(said)
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


def _loop(job: Path) -> Finished:
    return run_process([sys.executable, "-m", "benchmarks.reference_loop", str(job)], timeout_s=3600)


def _floor(case: Case) -> tuple[float, str]:
    """Seconds a clip, of the better of two ways to use the cores: all on one clip, or a clip on each."""
    given, cores = case.clips[: case.looped], len(os.sched_getaffinity(0))
    _, together = case.loop("floor", given, threads=cores)
    jobs = [case.write_job("floor", given, part=part, threads=1) for part in range(cores)]
    with ThreadPoolExecutor(cores) as apart:
        list(apart.map(_loop, jobs))
    each = mean(mean(_found(job)["clip_s"][1:]) for job in jobs) / cores
    all_on_one = mean(together["clip_s"][1:])
    how = f"{all_on_one:.3f} s with {cores} threads on one clip, {each:.3f} s with {cores} processes of one thread"
    return min(each, all_on_one), how


def _lower_precision(case: Case, measured: _Measured) -> tuple[list[str], str]:
    """bf16 on this CPU: what it gains and whose labels it moves."""
    bf16 = ("--precision", "bf16")
    small, _ = case.ours(case.few, *bf16)
    large, found = case.ours(case.many, *bf16)
    steady = Timing(((large.wall_s - small.wall_s) / (case.many - case.few),), ())
    gains = [
        f"{measured.timings[name].median_s / steady.median_s:.2f}x" for name in ("shipped", "kept")
    ]  # fmt: skip
    return [case.name, "ours in bf16, steady state", str(steady), *gains], _flips(
        measured.ours, found, "random weights"
    )


def _flips_of_trained_models() -> str:
    lines = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    heard = [
        Clip(line["id"], str(HELDOUT / line["audio"]), line["reference"], 0.0)
        for line in lines
        if line["language"] == "en" and line["heldout"] == "sentences"
    ]
    manifest = write_manifest(FOLDER / "trained.jsonl", heard)
    results = [run_ours(manifest, trained_models(), "--precision", precision)[1] for precision in ("fp32", "bf16")]
    return _flips(results[0], results[1], "the demo's trained models")


def _flips(fp32: Mapping[str, tuple[str, dict[str, float]]], bf16: Scored, whose: str) -> str:
    flips = sum(fp32[key][0] != bf16[key][0] for key in fp32)
    moved = max(abs(fp32[key][1][emotion] - bf16[key][1][emotion]) for key in fp32 for emotion in fp32[key][1])
    return f"bf16 on CPU, {whose}: {flips} of {len(fp32)} labels flip, scores move by up to {moved:.2g}."


def run_ours(manifest: Path, models: Models, *options: str) -> tuple[Finished, Scored]:
    """The command into a fresh output, and what it wrote."""
    output = FOLDER / "out"
    shutil.rmtree(output, ignore_errors=True)
    finished = run_process(annotate_command(manifest, output, named(models), *options), timeout_s=3600)
    found = annotated(output)
    shutil.rmtree(output)
    return finished, found


def _found(job: Path) -> dict[str, object]:
    return json.loads(job.with_suffix(".found").read_text(encoding="utf-8"))

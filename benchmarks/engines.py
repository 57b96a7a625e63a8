"""Comparison of the whole job with two plain scripts on the same checkpoints: Ray Data, as in its audio example, and Daft.

The scripts, `plain_ray.py` and `plain_daft.py`, load stock transformers models once in each of as many processes as there
are cores, batch four clips, pad to the longest, and write Parquet. They commit nothing, check nothing and stop at the first
bad file. Daft is no dependency of this project: an environment of its own is made under `build/bench` at the first run
(from the package index), in which it meets the very torch and transformers that we run.

Steady state is what a larger job takes more than a smaller one, a clip: start-up cancels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from benchmarks.harness import RESULTS, Result, Timing, ratio
from benchmarks.plain_model import BATCH_SIZE
from benchmarks.processes import Finished
from benchmarks.processes import run as run_process
from benchmarks.workload import (
    Clip,
    Models,
    Scored,
    agree,
    annotate_command,
    annotated,
    clips,
    in_our_words,
    named,
    published_models,
    small_models,
    write_manifest,
)

FOLDER = RESULTS / "engines"
DAFT = "daft==0.7.26"
PLAIN = {"plain Ray Data": "benchmarks.plain_ray", "Daft": "benchmarks.plain_daft"}
Taken = dict[str, list[float]]
"""Measurements by name, one value per round."""
SETTINGS = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One size of checkpoint.

    Attributes:
        few, many: clips of the two jobs whose difference is the steady state.
        options: of our command beyond what it is told anyway.
    """

    name: str
    models: Models
    few: int
    many: int
    rounds: int
    options: Sequence[str] = ()


def run(*, quick: bool) -> Result:
    """Run each engine in turn on two numbers of clips, at both model sizes."""
    cases = [Case("small", small_models(), 8, 24, 1) if quick else Case("small", small_models(), 256, 1024, 3)]
    if not quick:
        cases.append(Case("published", published_models(), 8, 40, 3, ("--shard-rows", "4")))
    rows: list[list[str]] = []
    notes: list[str] = []
    figures: dict[str, float] = {}
    for case in cases:
        taken, case_notes = _compare(case)
        rows += [_row(case, name, taken) for name in taken]
        notes += case_notes
        figures |= {
            f"{case.name} {name} {what}": float(np.median(values))
            for name in taken
            for what, values in taken[name].items()
        }
    notes += [
        "Small: the parity checkpoints. Published: w2v-bert 2.0 and BERT base in their shapes with random weights, which take "
        f"2.8 GB in fp32. Texts given, mode mean; two model processes of a thread each; plain scripts: batches of {BATCH_SIZE}.",
        "Peak: of the whole process tree, looked at every two seconds; a page that n processes share counts an nth in each. "
        "Resident sum: the same, but shared pages count in full in each.",
        f"{DAFT} in an environment of its own with our torch and transformers; ours writes labels and scores, as they do.",
    ]
    columns = (
        "checkpoints",
        "",
        "a clip, steady",
        "this / ours",
        "whole job",
        "this / ours",
        "peak memory",
        "this / ours",
        "resident sum",
        "this / ours",
    )
    return Result("The whole job against plain Ray Data and Daft scripts", columns, rows, notes, figures)


def _compare(case: Case) -> tuple[dict[str, Taken], list[str]]:
    """Measure each engine at one model size, round by round. Returns: the measurements, and notes."""
    given = clips(lengths(case.many))
    manifests = {count: write_manifest(FOLDER / f"{count}.jsonl", given[:count]) for count in (case.few, case.many)}
    variants = ["ours", *PLAIN]
    taken: dict[str, Taken] = {name: {"steady": [], "whole": [], "peak": [], "resident": []} for name in variants}
    notes: list[str] = []
    for number in range(case.rounds):
        results: dict[str, Scored] = {}
        turn = number % len(variants)
        for name in variants[turn:] + variants[:turn]:
            small, _ = _annotate(name, manifests[case.few], case)
            large, results[name] = _annotate(name, manifests[case.many], case)
            taken[name]["steady"].append((large.wall_s - small.wall_s) / (case.many - case.few))
            taken[name]["whole"].append(large.wall_s)
            taken[name]["peak"].append(large.peak_bytes)
            taken[name]["resident"].append(large.resident_bytes)
        notes = [agree(results[name], results["ours"], who=f"{name}, {case.name}") for name in PLAIN]
    seconds = sum(clip.duration_s for clip in given)
    notes.append(
        f"{case.name.capitalize()}: {case.many:,} clips of {given_range(given)}, {seconds / 60:.0f} min of 16 kHz WAV; steady "
        f"state from {case.few} and {case.many:,} clips."
    )
    return taken, notes


def lengths(count: int) -> list[float]:
    """Return clip lengths in seconds as in corpora of utterances: log-normal around 3.5 s, clipped to 1 to 12 s. Seed 7."""
    drawn = np.random.default_rng(7).lognormal(np.log(3.5), 0.5, count)
    return [round(float(length), 2) for length in np.clip(drawn, 1.0, 12.0)]


def given_range(given: list[Clip]) -> str:
    """Return a note on the lengths of the clips."""
    durations = [clip.duration_s for clip in given]
    return f"{min(durations):.1f} to {max(durations):.1f} s (median {np.median(durations):.1f})"


def _annotate(name: str, manifest: Path, case: Case) -> tuple[Finished, Scored]:
    output, models = FOLDER / "out", case.models
    shutil.rmtree(output, ignore_errors=True)
    if name == "ours":
        command = annotate_command(manifest, output, named(models), "--embeddings", "none", *case.options)
        finished = run_process(command, timeout_s=1800)
        found = annotated(output)
    else:
        python = _daft_python() if name == "Daft" else sys.executable
        arguments = [str(manifest), str(output), str(models.fusion), str(models.encoder)]
        finished = run_process([python, "-m", PLAIN[name], *arguments], timeout_s=1800, env=SETTINGS)
        found = _written(output, models)
    shutil.rmtree(output)
    return finished, found


def _written(output: Path, models: Models) -> Scored:
    """Read the output of a plain script: id, label and scores by class."""
    from pipeline.models.checkpoints.modes import labels_of
    from pipeline.models.checkpoints.weights import resolve

    names = labels_of(resolve(str(models.fusion)))
    rows = ds.dataset(output, format="parquet").to_table().to_pylist()
    scores = {row["id"]: dict(zip(names, row["scores"], strict=True)) for row in rows}
    return in_our_words({row["id"]: row["label"] for row in rows}, scores)


def _daft_python() -> str:
    """Return an interpreter with Daft and, after it, all packages of this one."""
    folder = RESULTS / "daft-env"
    python = folder / "bin" / "python"
    link = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})) / "ours.pth"
    if not link.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", DAFT], check=True)
        link.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return str(python)


def _row(case: Case, name: str, taken: dict[str, Taken]) -> list[str]:
    cells = [case.name, name]
    for what in ("steady", "whole"):
        theirs, ours = (Timing(tuple(taken[who][what]), ()) for who in (name, "ours"))
        cells += [str(theirs), "1" if name == "ours" else ratio(theirs, ours)]
    for what in ("peak", "resident"):
        held, held_by_us = (float(np.median(taken[who][what])) for who in (name, "ours"))
        cells += [f"{held / 2**30:.2f} GiB", "1" if name == "ours" else f"{held / held_by_us:.2f}x"]
    return cells

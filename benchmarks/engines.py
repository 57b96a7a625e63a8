"""The whole job against two plain scripts with the same checkpoints: Ray Data in the style of its audio example, and Daft.

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
    small_models,
    write_manifest,
)

FOLDER = RESULTS / "engines"
DAFT = "daft==0.7.26"
PLAIN = {"plain Ray Data": "benchmarks.plain_ray", "Daft": "benchmarks.plain_daft"}
SETTINGS = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(*, quick: bool) -> Result:
    """Each engine at two sizes, in turn."""
    few, many, rounds = (8, 24, 1) if quick else (256, 1024, 3)
    models, given = small_models(), clips(lengths(many))
    manifests = {count: write_manifest(FOLDER / f"{count}.jsonl", given[:count]) for count in (few, many)}
    variants = ["ours", *PLAIN]
    taken: dict[str, dict[str, list[float]]] = {name: {"steady": [], "whole": [], "peak": []} for name in variants}
    notes: list[str] = []
    for number in range(rounds):
        results: dict[str, Scored] = {}
        turn = number % len(variants)
        for name in variants[turn:] + variants[:turn]:
            small, _ = _annotate(name, manifests[few], models)
            large, results[name] = _annotate(name, manifests[many], models)
            taken[name]["steady"].append((large.wall_s - small.wall_s) / (many - few))
            taken[name]["whole"].append(large.wall_s)
            taken[name]["peak"].append(large.peak_bytes)
        notes = [agree(results[name], results["ours"], who=name) for name in PLAIN]
    seconds = sum(clip.duration_s for clip in given)
    notes += [
        f"{many:,} clips of {given_range(given)}, {seconds / 60:.0f} min of 16 kHz WAV, texts given, mode mean, parity "
        f"checkpoints; steady state from {few} and {many:,} clips; plain scripts: batches of {BATCH_SIZE}.",
        "Peak: largest sum of resident memory over the whole process tree, looked at five times a second; pages that "
        "processes share count in each.",
        f"{DAFT} in an environment of its own with our torch and transformers; ours writes labels and scores, as they do.",
    ]
    rows = [_row(name, taken) for name in variants]
    figures = {f"{name} {what}": float(np.median(values)) for name in taken for what, values in taken[name].items()}
    columns = (
        "",
        "a clip, steady",
        "this / ours",
        f"whole job, {many:,} clips",
        "this / ours",
        "peak memory",
        "this / ours",
    )
    return Result("The whole job against plain Ray Data and Daft scripts", columns, rows, notes, figures)


def lengths(count: int) -> list[float]:
    """Seconds, log-normal about 3.5 s and cut to 1 to 12 s, in no order: corpora of utterances look so. Seed 7."""
    drawn = np.random.default_rng(7).lognormal(np.log(3.5), 0.5, count)
    return [round(float(length), 2) for length in np.clip(drawn, 1.0, 12.0)]


def given_range(given: list[Clip]) -> str:
    """How long the clips are."""
    durations = [clip.duration_s for clip in given]
    return f"{min(durations):.1f} to {max(durations):.1f} s (median {np.median(durations):.1f})"


def _annotate(name: str, manifest: Path, models: Models) -> tuple[Finished, Scored]:
    output = FOLDER / "out"
    shutil.rmtree(output, ignore_errors=True)
    if name == "ours":
        command = annotate_command(manifest, output, named(models), "--embeddings", "none")
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
    """What a plain script wrote, its columns being id, label and scores by class."""
    from pipeline.models.modes import labels_of
    from pipeline.models.weights import resolve

    names = labels_of(resolve(str(models.fusion)))
    rows = ds.dataset(output, format="parquet").to_table().to_pylist()
    scores = {row["id"]: dict(zip(names, row["scores"], strict=True)) for row in rows}
    return in_our_words({row["id"]: row["label"] for row in rows}, scores)


def _daft_python() -> str:
    """An interpreter that has Daft and, behind it, everything that this one has."""
    folder = RESULTS / "daft-env"
    python = folder / "bin" / "python"
    link = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})) / "ours.pth"
    if not link.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", DAFT], check=True)
        link.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return str(python)


def _row(name: str, taken: dict[str, dict[str, list[float]]]) -> list[str]:
    steady, whole = (Timing(tuple(taken[name][what]), ()) for what in ("steady", "whole"))
    our_steady, our_whole = (Timing(tuple(taken["ours"][what]), ()) for what in ("steady", "whole"))
    peak, our_peak = (float(np.median(taken[who]["peak"])) for who in (name, "ours"))
    return [
        name,
        str(steady),
        "1" if name == "ours" else ratio(steady, our_steady),
        str(whole),
        "1" if name == "ours" else ratio(whole, our_whole),
        f"{peak / 2**30:.2f} GiB",
        "1" if name == "ours" else f"{peak / our_peak:.2f}x",
    ]

"""Start, end and page of short jobs: 8 and 504 clips, seconds until each step, and the CPU seconds of each process; and a
Python process that labels 8 clips with an `Annotator`.

usage: python -m benchmarks.startup [--rounds N]

The parity checkpoints, clips of 1.5 s with texts, each job into a new output. On a machine that does other work the CPU seconds
mean more than the wall time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import RESULTS, Result, publish
from benchmarks.processes import Finished
from benchmarks.processes import run as run_process
from benchmarks.workload import annotate_command, clips, named, small_models, write_manifest

_CLIP_S = 1.5
_SIZES = (8, 504)
_ROUNDS = 3
_ANNOTATOR = """
from pathlib import Path
import pipeline
annotator = pipeline.Annotator(mode="mean", emotion_model="demo/models/mean-en", sentence_encoder="demo/models/sentence-encoder")
clips = [clip for clip in sorted(Path("demo/corpus/audio").iterdir()) if clip.name[:3] in ("ada", "ben", "cle")]
labelled = annotator.annotate(clips, ["We won two prizes in the hotel on Friday!"] * len(clips))
print("labelled", len({utterance.audio for utterance in labelled}), "clips, rejected", len(labelled.rejects))
"""
_FOLDER = RESULTS / "startup"
_STEPS = {"first line": "", "first shard": "shard ", "last shard": "run 000001: ", "page": "page in "}
"""Name of a step, and the beginning of the line that ends it; the last of several lines counts, but for the first line."""
_KINDS = (
    ("driver", "jobs.annotate"),
    ("fork server and check of the models", "checkpoints.pinning"),
    ("page", "jobs.report"),
    ("imports of workers", "pipeline.processes"),
    ("recognition actors", "MapWorker"),
    ("decoders", "pipeline.audio.child"),
    ("Ray's own processes", "gcs_server"),
    ("Ray's own processes", "raylet"),
    ("Ray's own processes", "Agent"),
    ("Ray's own processes", "dashboard"),
    ("Ray's own processes", "monitor"),
)
"""Kind of process by a part of its command line; the others are Ray's workers, which run the small tasks and actors."""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    started = time.perf_counter()
    result = table(_SIZES, parser.parse_args().rounds)
    print("\n".join("  ".join(row) for row in [result.columns, *result.rows, *([note] for note in result.notes)]))
    publish("startup", result, took_s=time.perf_counter() - started)


def run(*, quick: bool) -> Result:
    """Measure; quick: the small job, once."""
    return table(_SIZES[:1], 1) if quick else table(_SIZES, _ROUNDS)


def table(sizes: Sequence[int], rounds: int) -> Result:
    """Return the steps and the CPU seconds of the jobs."""
    lines, notes, figures = [], [], {}
    for size in sizes:
        manifest = write_manifest(_FOLDER / f"{size}.jsonl", clips([_CLIP_S] * size))
        finished = [_job(manifest) for _ in range(rounds)]
        moments = {name: median(_moment(each, name) for each in finished) for name in _STEPS}
        cpu_s = median(sum(each.cpu_s.values()) for each in finished)
        wall_s = median(each.wall_s for each in finished)
        lines.append(
            (f"{size} clips", *(f"{moment:.1f} s" for moment in moments.values()), f"{wall_s:.1f} s", f"{cpu_s:.1f} s")
        )
        shares = _by_kind(min(finished, key=lambda each: sum(each.cpu_s.values())))
        notes.append(
            f"CPU seconds of {size} clips: " + ", ".join(f"{name} {taken:.1f}" for name, taken in shares.items()) + "."
        )
        figures |= {f"{size} wall s": wall_s, f"{size} cpu s": cpu_s}
    alone = [_annotator() for _ in range(rounds)]
    figures |= {
        "annotator wall s": median(each.wall_s for each in alone),
        "annotator cpu s": median(sum(each.cpu_s.values()) for each in alone),
    }
    notes.append(
        f"A Python process that labels 8 clips with an Annotator, demo models, texts given: {figures['annotator wall s']:.1f} s, "
        f"CPU {figures['annotator cpu s']:.1f} s. Aim on two idle cores: 6 s."
    )
    return Result(
        title="Short jobs",
        columns=("job", *_STEPS, "whole process", "CPU, all processes"),
        rows=lines,
        notes=[
            f"Parity checkpoints, mode mean, clips of {_CLIP_S} s with texts, page included; median of {rounds}, seconds since "
            "the start of the process.",
            *notes,
            "Aims on two idle cores: first line 2 s, 8 clips 7 s, 504 clips 12 s.",
        ],
        figures=figures,
    )


def _job(manifest: Path) -> Finished:
    output = _FOLDER / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [word for word in annotate_command(manifest, output, named(small_models())) if word != "--no-page"]
    finished = run_process([sys.executable, *command[1:]], timeout_s=600)
    finished.require("page in ")
    return finished


def _annotator() -> Finished:
    finished = run_process([sys.executable, "-c", _ANNOTATOR], timeout_s=600)
    finished.require("labelled 8 clips, rejected 0")
    return finished


def _moment(finished: Finished, step: str) -> float:
    moments = [at_s for at_s, line in finished.lines if line.startswith(_STEPS[step])]
    return moments[0] if step in ("first line", "first shard") else moments[-1]


def _by_kind(finished: Finished) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for command, taken_s in finished.cpu_s.items():
        kind = next((name for name, part in _KINDS if part in command), "Ray's other workers")
        kinds[kind] = kinds.get(kind, 0.0) + taken_s
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()

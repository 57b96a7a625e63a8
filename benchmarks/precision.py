"""Lower precision of the emotion models on this CPU: speed at the published sizes, and changed labels."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import RESULTS, Result
from benchmarks.reference import Case, run_ours
from benchmarks.workload import Scored, published_models, sentences, small_models, trained_models, write_manifest

_PRECISIONS = ("fp32", "bf16", "int8")


def run(*, quick: bool) -> Result:
    """Time each precision, then compare labels of the trained models on the held-out sentences."""
    case = Case("precision", small_models() if quick else published_models(), 0, 8, 24, 1, shard_rows=4)
    clip_s: dict[str, float] = {}
    scored: dict[str, Scored] = {}
    for name in _PRECISIONS:
        small, large = (case.ours(count, "--precision", name) for count in (case.few, case.many))
        clip_s[name] = (large.process.wall_s - small.process.wall_s) / (case.many - case.few)
        scored[name] = large.scored
    manifest = write_manifest(RESULTS / "reference" / "trained.jsonl", sentences())
    trained = {name: run_ours(manifest, trained_models(), "--precision", name).scored for name in _PRECISIONS}
    rows = [
        (
            name,
            f"{taken_s:.2f} s",
            f"{clip_s['fp32'] / taken_s:.2f}x",
            _moved(scored["fp32"], scored[name]),
            _moved(trained["fp32"], trained[name]),
        )
        for name, taken_s in clip_s.items()
    ]
    return Result(
        title="Lower precision on CPU",
        columns=(
            "--precision",
            "a clip, steady",
            "fp32 / this",
            "random weights: flips, scores move by",
            "the demo's models: flips, scores move by",
        ),
        rows=rows,
        notes=(
            "w2v-bert 2.0 and BERT base in their shapes with random weights, clips of 3.5 s, texts given, mode mean, two actors "
            f"of one thread; the difference between jobs of {case.few} and {case.many} clips, once. The demo's models: its "
            "English held-out sentences.",
            f"What this processor has of its own for it: {_instructions()}.",
            "int8: the matrices of the conformer layers only; activations rounded at each, one clip a pass.",
        ),
    )


def _moved(full: Scored, lower: Scored) -> str:
    flips = sum(full[key][0] != lower[key][0] for key in full)
    moved = max(abs(full[key][1][emotion] - lower[key][1][emotion]) for key in full for emotion in full[key][1])
    return f"{flips} of {len(full)}, {moved:.2g}"


def _instructions() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    wanted = ("avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
    return ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in wanted)

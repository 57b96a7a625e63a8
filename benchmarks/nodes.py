"""Scaling over nodes: several Ray nodes on this machine, each with a simulated GPU, whose models sleep like a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ray.cluster_utils import Cluster

from benchmarks.harness import RESULTS, Result
from benchmarks.processes import run as ran
from benchmarks.workload import annotate_command, clips, write_manifest
from tests.support.noop_models import environment, models_of

_CLIP_S = 4.0
_DEVICE_S = 1.0
"""Seconds of a simulated device per second of audio: slow enough that two cores decode for sixteen."""
_CLIPS_PER_GPU = 100
_SHARD_ROWS = 4
_FROM, _TO = 0.5, 0.9
"""Shares of a job's files between which its rate is measured: all actors run, and none is out of work."""
_TARGET = 0.9
_TIMEOUT_S = 1800.0
_KEEP_WORKERS = {"idle_worker_killing_time_threshold_ms": 600_000}
"""Longer idle time of workers: a node of one CPU would end its task worker a second after a shard, and spend three CPU
seconds on starting one for the next."""


def run(*, quick: bool) -> Result:
    """Run one job for each number of nodes, with work proportional to it."""
    models, widths = models_of("mean")
    armed = environment(widths, device_s_per_audio_s=_DEVICE_S)
    rows, alone = [], 0.0
    with tempfile.TemporaryDirectory(prefix="nodes-") as name:
        for nodes in (1, 2) if quick else (1, 2, 4, 8, 16):
            count = (20 if quick else _CLIPS_PER_GPU) * nodes
            manifest = write_manifest(Path(name) / f"{count}.jsonl", clips([_CLIP_S] * count))
            clips_per_s, wall_s = _job(nodes, manifest, Path(name) / f"out-{nodes}", models, armed)
            alone = alone or clips_per_s
            rows.append(
                (
                    f"{nodes}",
                    f"{count}",
                    f"{wall_s:.0f} s",
                    f"{clips_per_s:.2f}",
                    f"{clips_per_s * _CLIP_S * _DEVICE_S / nodes:.0%}",
                    f"{clips_per_s / (alone * nodes):.0%}",
                )
            )
    return Result(
        title="Scaling over nodes",
        columns=(
            "nodes",
            "clips",
            "whole job",
            "clips/s, steady",
            "of the time the devices sleep",
            "efficiency against 1 node",
        ),
        rows=rows,
        notes=(
            f"nodes of `ray.cluster_utils` on one machine, each one CPU slot and one pretended GPU; models sleep {_DEVICE_S} s "
            f"for a second of audio; clips of {_CLIP_S:.0f} s with texts are fetched, decoded in the sandbox, shipped, "
            "committed and published as ever; idle workers are kept (by default each shard of so small a node starts two, and "
            "two cores carry 2.4 clips/s, four nodes)",
            f"steady: from the times of the job's files, between {_FROM:.0%} and {_TO:.0%} of them; the whole job has the start "
            "of so many Ray nodes and workers on two cores in it, which are those of one machine here",
            f"target at 16: {_TARGET:.0%}; checked in each run: status 0 and every clip annotated",
        ),
    )


def _job(nodes: int, manifest: Path, output: Path, models: list[str], armed: Mapping[str, str]) -> tuple[float, float]:
    """Return the clips per second in the steady state, and the total seconds."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _KEEP_WORKERS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=200 * 2**20)
        cluster.wait_for_nodes()
        command = annotate_command(
            manifest, output, models, "--audio-root", str(RESULTS), "--shard-rows", str(_SHARD_ROWS)
        )
        job = ran(command, env={**armed, "RAY_ADDRESS": cluster.address}, timeout_s=_TIMEOUT_S)
    finally:
        cluster.shutdown()
    job.require(f"{int(manifest.stem):,} annotated + 0 rejected")
    written = sorted(path.stat().st_mtime for path in (output / "utterances").rglob("*.parquet"))
    first, last = int(_FROM * len(written)), int(_TO * len(written))
    return (last - first) * _SHARD_ROWS / (written[last] - written[first]), job.wall_s

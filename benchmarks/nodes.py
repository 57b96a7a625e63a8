"""Scaling over nodes: several Ray nodes on this machine, each with one pretended GPU whose models sleep for a GPU's time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ray.cluster_utils import Cluster

from benchmarks.harness import RESULTS, Result
from benchmarks.processes import run as ran
from benchmarks.workload import annotate_command, clips, write_manifest
from tests.noop_models import environment, models_of

_CLIP_S = 4.0
_DEVICE_S = 0.5
"""Of a modelled device, for one second of audio: slow enough that two cores decode for sixteen."""
_CLIPS_PER_GPU = 16
_TARGET = 0.9
_TIMEOUT_S = 900.0


def run(*, quick: bool) -> Result:
    """Jobs whose work grows with the nodes, two sizes each; the difference is their steady state."""
    models, widths = models_of("mean")
    armed = environment(widths, device_s_per_audio_s=_DEVICE_S)
    rows, alone = [], 0.0
    with tempfile.TemporaryDirectory(prefix="nodes-") as name:
        for nodes in (1, 2) if quick else (1, 2, 4, 8, 16):
            per_gpu = 8 if quick else _CLIPS_PER_GPU
            manifests = [
                write_manifest(Path(name) / f"{count * nodes}.jsonl", clips([_CLIP_S] * count * nodes))
                for count in (per_gpu, 3 * per_gpu)
            ]
            extra_s = _extra_s(nodes, manifests, Path(name), models, armed)
            clips_per_s = 2 * per_gpu * nodes / extra_s
            alone = alone or clips_per_s
            efficiency = clips_per_s / (alone * nodes)
            rows.append((f"{nodes}", f"{2 * per_gpu * nodes}", f"{extra_s:.1f} s", f"{clips_per_s:.2f}",
                         f"{clips_per_s * _CLIP_S * _DEVICE_S / nodes:.0%}", f"{efficiency:.0%}"))  # fmt: skip
    return Result(
        title="Scaling over nodes",
        columns=("nodes", "clips", "wall", "clips/s", "of the time the devices sleep", "efficiency against 1 node"),
        rows=rows,
        notes=(
            f"nodes of `ray.cluster_utils` on one machine, each one CPU slot and one pretended GPU; models sleep {_DEVICE_S} s "
            f"for a second of audio; clips of {_CLIP_S:.0f} s with texts are fetched, decoded in the sandbox, shipped, "
            "committed and published as ever",
            "work grows with the nodes; the difference between jobs of n and 3n clips, so that starts fall out",
            f"target at 16: {_TARGET:.0%}; checked in each run: status 0 and every clip annotated",
        ),
    )


def _extra_s(nodes: int, manifests: list[Path], folder: Path, models: list[str], armed: Mapping[str, str]) -> float:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=200 * 2**20)
        cluster.wait_for_nodes()
        env = {**armed, "RAY_ADDRESS": cluster.address}
        walls = []
        for manifest in manifests:
            output = folder / f"out-{time.monotonic_ns()}"
            command = annotate_command(manifest, output, models, "--audio-root", str(RESULTS), "--shard-rows", "4")
            job = ran(command, env=env, timeout_s=_TIMEOUT_S)
            job.require(f"{int(manifest.stem):,} annotated + 0 rejected")
            walls.append(job.wall_s)
        return walls[1] - walls[0]
    finally:
        cluster.shutdown()

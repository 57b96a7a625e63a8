"""Plain Ray Data script for the same job, in the style of Ray's audio example: map, map_batches with a class, write_parquet.

usage: python -m benchmarks.plain_ray MANIFEST OUTPUT FUSION ENCODER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray

from benchmarks.plain_model import BATCH_SIZE, Recogniser, load_audio


def load(row: dict[str, Any]) -> dict[str, Any]:
    """Add the waveform to a manifest row."""
    return {**row, "waveform": load_audio(row["audio"])}


class Recognise:
    """Actor with the loaded models."""

    def __init__(self, fusion: str, encoder: str) -> None:
        self.recogniser = Recogniser(fusion, encoder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Label one batch."""
        labels, scores = self.recogniser.recognise(batch["waveform"], batch["text"])
        return {"id": batch["id"], "label": labels, "scores": scores}


def main() -> None:
    """Annotate a manifest."""
    manifest, output, fusion, encoder = sys.argv[1:]
    cores = len(os.sched_getaffinity(0))
    ray.init(address="local", include_dashboard=False, log_to_driver=False)  # not whatever cluster runs here
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    (
        ray.data.from_items(rows)
        .map(load, num_cpus=0.5)
        .map_batches(
            Recognise,
            fn_constructor_args=(fusion, encoder),
            batch_size=BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=cores),
            num_cpus=0.5,  # an actor for each core, and room for the tasks that feed them
        )
        .write_parquet(output)
    )


if __name__ == "__main__":
    main()

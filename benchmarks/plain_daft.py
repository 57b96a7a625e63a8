"""Plain Daft script for the same job: a class with a batch method, one instance per core, write_parquet.

usage: python -m benchmarks.plain_daft MANIFEST OUTPUT FUSION ENCODER       in an environment that has daft
"""

from __future__ import annotations

import os
import sys

import daft
from daft import DataType, Series

from benchmarks.plain_model import BATCH_SIZE, Recogniser, load_audio

RESULT = DataType.struct({"label": DataType.string(), "scores": DataType.list(DataType.float32())})


@daft.cls(max_concurrency=len(os.sched_getaffinity(0)), use_process=True)
class Recognise:
    """The loaded models."""

    def __init__(self, fusion: str, encoder: str) -> None:
        self.recogniser = Recogniser(fusion, encoder)

    @daft.method.batch(return_dtype=RESULT, unnest=True, batch_size=BATCH_SIZE)
    def recognise(self, audio: Series, text: Series) -> list[dict[str, object]]:
        """Label one batch of files."""
        waveforms = [load_audio(path) for path in audio.to_pylist()]
        labels, scores = self.recogniser.recognise(waveforms, text.to_pylist())
        return [{"label": label, "scores": row} for label, row in zip(labels, scores, strict=True)]


def main() -> None:
    """Annotate a manifest."""
    manifest, output, fusion, encoder = sys.argv[1:]
    recogniser = Recognise(fusion, encoder)
    frame = daft.read_json(manifest)
    frame.select(frame["id"], recogniser.recognise(frame["audio"], frame["text"])).write_parquet(output)


if __name__ == "__main__":
    main()

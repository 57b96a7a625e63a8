"""The models alone: `python -m benchmarks.alone MANIFEST COUNT` loads the demo models, decodes the last COUNT clips, says so,
waits for a line, recognises them in shards of 16, and says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo.models import MODELS, ROOT
from pipeline.audio.decode import decode
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.weights import resolve

_SHARD_ROWS = 16


def main() -> None:
    """See the module."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()][
        -int(sys.argv[2]) :
    ]
    folder = ROOT / MODELS
    models = EmotionRecogniser(
        "mean", resolve(str(folder / "mean-en")), resolve(str(folder / "sentence-encoder")), num_threads=1
    )
    waveforms = [decode(Path(row["audio"]).read_bytes()) for row in rows]
    texts = [row["text"] for row in rows]
    models.recognise(waveforms[:2], texts[:2])
    print("ready", flush=True)
    sys.stdin.readline()
    for start in range(0, len(rows), _SHARD_ROWS):
        models.recognise(waveforms[start : start + _SHARD_ROWS], texts[start : start + _SHARD_ROWS])
    print("done", flush=True)


if __name__ == "__main__":
    main()

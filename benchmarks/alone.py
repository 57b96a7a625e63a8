"""Time the models alone: `python -m benchmarks.alone MANIFEST COUNT FUSION ENCODER SHARD_ROWS` loads them, decodes the last COUNT
clips, says so, waits for a line, recognises them shard by shard, and says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.audio.decode import decode
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser


def main() -> None:
    """Time the models as the module describes."""
    manifest, count, fusion, encoder, shard_rows = sys.argv[1:]
    rows = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()][-int(count) :]
    models = EmotionRecogniser("mean", resolve(fusion), resolve(encoder), num_threads=1)
    waveforms = [decode(Path(row["audio"]).read_bytes()) for row in rows]
    texts = [row["text"] for row in rows]
    models.recognise(waveforms[:2], texts[:2])
    print("ready", flush=True)
    sys.stdin.readline()
    for start in range(0, len(rows), int(shard_rows)):
        shard = slice(start, start + int(shard_rows))
        models.recognise(waveforms[shard], texts[shard])
    print("done", flush=True)


if __name__ == "__main__":
    main()

"""`jobs.search` over a million utterances: exact and streamed, against numpy that loads all of them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.harness import Result
from benchmarks.processes import Finished
from benchmarks.processes import run as ran
from tests.support import outputs

_ROWS = 1_000_000
_WIDTH = 1024
_SHARD_ROWS = 1024
_ROUNDS = 3
_TIMEOUT_S = 1800.0
_WHERE = "emotion = 'anger' AND confidence > 0.4"
_NUMPY = """
import sys, numpy as np, pyarrow.dataset as ds
table = ds.dataset(sys.argv[1] + "/utterances").to_table(columns=["utterance_id", "audio_embedding"])
matrix = table["audio_embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
ids = table["utterance_id"].to_numpy()
query = matrix[np.flatnonzero(ids == sys.argv[2])[0]]
cosine = matrix @ query / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(query))
print(*(ids[i] for i in np.argsort(-cosine)[1:11]))
"""


def run(*, quick: bool) -> Result:
    """Create the output, then run the variants in turn, each in a process of its own."""
    rows = 4_000 if quick else _ROWS
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        output = _make(Path(folder), rows)
        size_bytes = sum(path.stat().st_size for path in Path(output, "utterances").rglob("*.parquet"))
        asked = [sys.executable, "-m", "jobs.search", output, "--like", "u17#0000", "--json"]
        variants = {
            "numpy, all loaded": [sys.executable, "-c", _NUMPY, output, "u17#0000"],
            "jobs.search": asked,
            "jobs.search --where": [*asked, "--where", _WHERE],
        }
        taken: dict[str, list[Finished]] = {name: [] for name in variants}
        for number in range(1 if quick else _ROUNDS):
            names = list(variants)
            for name in names[number % 3 :] + names[: number % 3]:
                taken[name].append(ran(variants[name], timeout_s=_TIMEOUT_S))
        exact = [json.loads(line)["utterance_id"] for line in taken["jobs.search"][0].output.splitlines()]
        if exact != taken["numpy, all loaded"][0].output.split():
            raise SystemExit(f"the answers differ: {exact} and {taken['numpy, all loaded'][0].output}")
    baseline = taken["numpy, all loaded"]
    return Result(
        title="Search: nearest utterances, exact",
        columns=("variant", "wall", "a GB", "against numpy", "peak MiB"),
        rows=[
            (
                name,
                _wall(found),
                f"{median(f.wall_s for f in found) / (rows * _WIDTH * 4e-9):.2f} s",
                _ratio(baseline, found),
                f"{max(f.own_peak_bytes for f in found) / 2**20:,.0f}",
            )
            for name, found in taken.items()
        ],
        notes=(
            f"{rows:,} rows with random embeddings of {_WIDTH} float32 in files of {_SHARD_ROWS} rows, "
            f"{size_bytes / 1e9:.1f} GB on local disk, in the page cache as far as it fits; whole processes, imports included; "
            "a GB is of embeddings as they are in memory",
            f"--where {_WHERE}: not the same question as numpy's, which has no filter",
            "checked: the ten ids of jobs.search are numpy's, in order",
        ),
        figures={f"{name} s": median(f.wall_s for f in found) for name, found in taken.items()},
    )


def _make(folder: Path, rows: int) -> str:
    outputs.WIDTH = _WIDTH
    outputs.FLAGS = {"partition_by": ""}
    output = str(folder / "out")
    store = outputs.open_store(output)
    records = [{"id": f"u{n}", "audio": f"/a/{n}.wav", "text": "t"} for n in range(rows)]
    plan = outputs.plan_rows(store, folder / "m", records, shard_rows=_SHARD_ROWS)
    outputs.annotate(output, plan)
    outputs.publish_plan(store, plan)
    return output


def _wall(found: list[Finished]) -> str:
    seconds = [f.wall_s for f in found]
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


def _ratio(baseline: list[Finished], found: list[Finished]) -> str:
    return f"{median(one.wall_s / other.wall_s for one, other in zip(baseline, found, strict=True)):.2f}x"

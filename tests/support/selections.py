"""A `Selection` without manifest files, for tests of plan and commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.manifest.staging import Selection, Staging
from pipeline.schema import ROW_SCHEMA


def selection_of(ids: Sequence[str], folder: Path, **columns: Sequence[object]) -> Selection:
    """Return what a manifest with these rows selects at an empty output."""
    staging = Staging(folder)
    count = len(ids)
    given = {
        "audio": [f"/audio/{i}.wav" for i in ids],
        "text": ["hello"] * count,
        "language": ["en"] * count,
        **columns,
    }
    base = {"recording_id": list(ids), "manifest": ["m.jsonl"] * count, "line": list(range(1, count + 1))}
    core = {
        name: pa.array({**base, **given}.get(name, [None] * count), ROW_SCHEMA.field(name).type)
        for name in ROW_SCHEMA.names
    }
    extra = {name: pa.array(values) for name, values in given.items() if name not in ROW_SCHEMA.names}
    staging.add_rows(pa.table({**core, **extra}))
    nothing = np.zeros(0, dtype="S16")
    return staging.select(nothing, nothing)

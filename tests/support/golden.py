"""The golden predictions of the reference system, and the tolerance for ours."""

from __future__ import annotations

import json
from pathlib import Path

PARITY = Path(__file__).parents[1] / "parity"
CASES = [json.loads(line) for line in (PARITY / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
SCORES, SCORES_RESAMPLED, EMBEDDINGS = 1e-4, 5e-3, 1e-3
LONG = "audio/en_16k_long.flac"

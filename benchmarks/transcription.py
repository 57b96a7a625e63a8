"""Comparison of the whole job with the reference toolkit, both transcribing with the same small Whisper."""

from __future__ import annotations

from benchmarks.harness import Result
from benchmarks.reference import Case, compared
from benchmarks.workload import small_models


def run(*, quick: bool) -> Result:
    """Compare the small checkpoints on the demo's held-out sentences, repeated under other ids."""
    sizes = (4, 4, 12, 1) if quick else (50, 128, 512, 3)
    notes = [
        "English held-out sentences of the demo, 1 to 6 s, in the page cache, no text given; parity checkpoints, mode mean; "
        "reference: torch's own number of threads.",
        "The demo's Whisper of 1.5 million parameters, greedy, fp32, the same weights on both sides: through transformers' "
        "pipeline there, as shipped, which pads each clip to 30 s; through CTranslate2 here.",
    ]
    return compared(
        "The whole job against the reference toolkit, both transcribing",
        [Case("small", small_models(), *sizes, transcribed=True)],
        notes,
    )

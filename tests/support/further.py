"""An output with further models of every kind of head, made without Ray."""

from __future__ import annotations

from pathlib import Path

from pipeline.storage.store import LocalStore
from tests.support.shards import by_hand, published, row, work_of
from tests.support.tiny_models import text_checkpoint

TEXTS = ("a sad day", "so happy", "why", "no", "we won two prizes", "the bus leaves at seven")
LABELS = ("ang", "joyful", "calm", "weird")
"""Labels of the further model `words`; the last two have no emotion."""


def further_output(folder: Path) -> LocalStore:
    """Return a finished output of six texts of two speakers, with the further models `words`, `dims` and `Select`.

    The manifest has labels in the columns `gold` (classes) and `act` (arousal).

    `Select` has independent labels, and a name that is a word of SQL.
    """
    text_checkpoint(folder / "m", "roberta")
    text_checkpoint(folder / "words", "bert", names=LABELS)
    dimensions = ("arousal", "dominance", "valence")
    text_checkpoint(folder / "dims", "roberta", names=dimensions, problem_type="regression")
    text_checkpoint(folder / "Select", "electra", problem_type="multi_label_classification")
    records = [
        row(
            number,
            text=text,
            audio=None,
            speaker="ab"[number % 2],
            gold="happy" if number % 3 else "sad",
            act=0.1 * number,
        )
        for number, text in enumerate(TEXTS)
    ]
    chosen = {"fusion/en": str(folder / "m")}
    chosen |= {f"fusion/en/{name}": str(folder / name) for name in ("words", "dims", "Select")}
    also = [f"{name}={folder / name}" for name in ("words", "dims", "Select")]
    work = work_of(folder, records, chosen, "text", segmentation="none", also=also)
    by_hand(work)
    return published(work)

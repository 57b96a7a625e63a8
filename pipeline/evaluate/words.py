"""Word error rates of what Whisper wrote, by jiwer, against the manifest's reference texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jiwer

from pipeline.evaluate.labelled import Labelled

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
ERRORS = ("substitutions", "deletions", "insertions")


def words(text: str) -> list[str]:
    """The words of a text as they are counted: lower case, no punctuation; accents and apostrophes inside words stay.

    Numbers are compared as they are written: `20` is not `twenty`.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def count_errors(labelled: Labelled, references: str) -> dict[str, dict[str, int]]:
    """Of each recording that Whisper alone wrote and that has a reference: its words and the errors in them.

    The utterances of a recording are joined in order, since references are of whole recordings.
    """
    texts: dict[str, list[tuple[int, str]]] = {}
    reference_of: dict[str, str] = {}
    given = set()
    columns = ("recording_id", "segment_index", "text", "text_source", references)
    for recording, index, text, source, reference in zip(*map(labelled.column, columns), strict=True):
        if source != "asr":
            given.add(recording)
        texts.setdefault(recording, []).append((index, text or ""))
        if reference is not None and words(str(reference)):
            reference_of[recording] = str(reference)
    kept = [recording for recording in texts if recording in reference_of and recording not in given]
    if not kept:
        return {}
    heard = [" ".join(words(" ".join(text for _, text in sorted(texts[recording])))) for recording in kept]
    said = [" ".join(words(reference_of[recording])) for recording in kept]
    found = {}
    for recording, reference, chunks in zip(kept, said, jiwer.process_words(said, heard).alignments, strict=True):
        counts = dict.fromkeys(ERRORS, 0)
        for chunk in chunks:
            for kind, error in zip(("substitute", "delete", "insert"), ERRORS, strict=True):
                if chunk.type == kind:
                    counts[error] += max(
                        chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                    )
        found[recording] = {"words": len(reference.split()), **counts, "utterances": len(texts[recording])}
    return found


def error_rate(errors: dict[str, dict[str, int]], recordings: Sequence[str]) -> dict[str, Any] | None:
    """The word error rate over some utterances, named by their recordings; None when there is none to count.

    A recording counts whose utterances are all among them: its reference is of all of it.
    """
    there = Counter(recordings)
    counted = [errors[name] for name, count in there.items() if name in errors and errors[name]["utterances"] == count]
    if not counted:
        return None
    totals = {name: sum(each[name] for each in counted) for name in ("words", *ERRORS)}
    rate = sum(totals[error] for error in ERRORS) / totals["words"]
    return {"recordings": len(counted), "word_error_rate": rate, **totals}

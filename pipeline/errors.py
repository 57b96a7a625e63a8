"""Every way a row or a job can fail, as a closed list.

A `RejectedRow` is one row's trouble: it becomes that row's line in `rejects/` and never touches its neighbours.
A `ConfigError` is the caller's: said before any work, exit code 2. A `JobError` is ours or the cluster's: exit code 1,
what was committed stays, and the same command goes on.

Each redacts the URLs in its message when it is made, so that no caller can forget to.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pipeline.redaction import redacted


class Reason(StrEnum):
    """Why a manifest row has no utterance. The value is what stands in `rejects.reason`."""

    # manifest
    MALFORMED = "MALFORMED"  # the line is not a record (bad JSON, wrong number of fields, bad bytes)
    BAD_FIELD = "BAD_FIELD"  # a known column holds a value it cannot hold
    DUPLICATE_ID = "DUPLICATE_ID"  # the id stands on rows that differ
    NOT_ALLOWED = "NOT_ALLOWED"  # the audio lies outside the allowed roots
    UNSUPPORTED_LANGUAGE = "UNSUPPORTED_LANGUAGE"  # no emotion model is known for the language
    # fetch
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    FETCH_FAILED = "FETCH_FAILED"  # the store kept failing past the retry budget
    REFUSED = "REFUSED"  # the store refuses this one object: HTTP 400, a name longer than it allows
    CHECKSUM = "CHECKSUM"  # the bytes are not those of the manifest's `sha256` or `md5`
    CHANGED = "CHANGED"  # the object was another when it was read a second time
    TOO_LARGE = "TOO_LARGE"  # more bytes than `max_bytes`
    # decode
    EMPTY = "EMPTY"  # zero bytes, or a container without a sample
    NOT_AUDIO = "NOT_AUDIO"
    BAD_HEADER = "BAD_HEADER"  # impossible sampling rate or channel count
    TRUNCATED = "TRUNCATED"  # shorter than its own header, or the manifest, says
    DAMAGED = "DAMAGED"  # the decoder gave up inside the stream
    NOT_FINITE = "NOT_FINITE"  # NaN or Inf samples
    TOO_SHORT = "TOO_SHORT"
    TOO_LONG = "TOO_LONG"
    BAD_SPAN = "BAD_SPAN"  # offset or duration outside the recording
    BAD_CHANNEL = "BAD_CHANNEL"
    DECODER_CRASH = "DECODER_CRASH"  # the decoder died of the file: a signal, an exit, an answer that is none
    TIMEOUT = "TIMEOUT"  # the decoder did not come to an end
    # any step
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # the row alone needs more memory than there is, or than its limits allow
    # models
    NO_SPEECH = "NO_SPEECH"  # a long recording in which voice activity found nothing to cut
    INTERNAL = "INTERNAL"  # an unexpected exception on this row; its type stands in the detail
    # nobody tried to the end
    GIVEN_UP = "GIVEN_UP"  # the run could not be finished, and `--give-up` rejected the rows that were left


class Stage(StrEnum):
    """Where in the pipeline a row was rejected."""

    MANIFEST = "manifest"
    FETCH = "fetch"
    DECODE = "decode"
    SEGMENT = "segment"
    TRANSCRIBE = "transcribe"
    RECOGNISE = "recognise"
    COMMIT = "commit"


class RejectedRow(Exception):
    """One row cannot be annotated: `reason` from the closed list, `detail` a sentence for a person, after `attempts` tries."""

    def __init__(self, reason: Reason, detail: str, stage: Stage, attempts: int = 1) -> None:
        detail = redacted(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.stage = stage
        self.attempts = attempts

    def __reduce__(self) -> tuple[type[RejectedRow], tuple[Reason, str, Stage, int]]:
        """Survive the pickling between Ray processes, which replays `args` by default."""
        return RejectedRow, (self.reason, self.detail, self.stage, self.attempts)


class ConfigError(Exception):
    """The command line, the config file, a model or the store cannot be used as asked. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class JobError(Exception):
    """The job cannot go on. Exit code 1; committed shards stay and the same command resumes."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class NoWorkersError(JobError):
    """No worker could start or go on for as long as the job may wait: no other plan would fare better."""


class StuckPlansError(JobError):
    """Some plans could not be finished, and the others were: `reports` are theirs."""

    def __init__(self, message: str, reports: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.reports = reports


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""

"""Rejects, their closed list of reasons, and the exceptions of rows and jobs.

A `Reject` says why one row has no utterance; a `RejectedRow` is the exception that carries it. The row is recorded in
`rejects/`, and other rows are not affected. A `ConfigError` is the caller's mistake, reported before any work: exit code
2. A `JobError` is a failure of the program or the cluster: exit code 1; committed shards are kept, and the same command
resumes the job.

Each exception redacts the URLs in its message on construction, and keeps its type and fields when it is pickled.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.redaction import redacted


class Reason(StrEnum):
    """Reason for which a manifest row has no utterance. The value is written to `rejects.reason`."""

    # manifest
    MALFORMED = "MALFORMED"  # the line is not a record (bad JSON, wrong number of fields, bad bytes)
    BAD_FIELD = "BAD_FIELD"  # a known column has an invalid value
    DUPLICATE_ID = "DUPLICATE_ID"  # rows that differ have the same id
    NOT_ALLOWED = "NOT_ALLOWED"  # the audio is outside the allowed roots
    UNSUPPORTED_LANGUAGE = "UNSUPPORTED_LANGUAGE"  # no emotion model is known for the language
    # fetch
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    FETCH_FAILED = "FETCH_FAILED"  # the store kept failing past the retry budget
    REFUSED = "REFUSED"  # the store refuses this object alone: HTTP 400, or a name that is too long
    CHECKSUM = "CHECKSUM"  # the content does not match the manifest's `sha256` or `md5`
    CHANGED = "CHANGED"  # the object had changed when it was read again
    TOO_LARGE = "TOO_LARGE"  # more bytes than `max_bytes`
    # decode
    EMPTY = "EMPTY"  # zero bytes, or a container without a sample
    NOT_AUDIO = "NOT_AUDIO"
    BAD_HEADER = "BAD_HEADER"  # impossible sampling rate or channel count
    TRUNCATED = "TRUNCATED"  # shorter than its header or the manifest states
    DAMAGED = "DAMAGED"  # the decoder failed inside the stream
    NOT_FINITE = "NOT_FINITE"  # NaN or Inf samples
    TOO_SHORT = "TOO_SHORT"
    TOO_LONG = "TOO_LONG"
    BAD_SPAN = "BAD_SPAN"  # offset or duration outside the recording
    BAD_CHANNEL = "BAD_CHANNEL"
    BAD_TURNS = "BAD_TURNS"  # turns of speakers that cannot be read, or are not this recording's
    DECODER_CRASH = "DECODER_CRASH"  # the decoder process crashed: a signal, an exit or an invalid reply
    TIMEOUT = "TIMEOUT"  # the decoder did not finish in time
    # any step
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # the row alone needs more memory than is available or allowed
    # models
    NO_SPEECH = "NO_SPEECH"  # voice activity detection found no speech in a long recording
    INTERNAL = "INTERNAL"  # an unexpected exception on this row; `detail` names its type
    # abandoned runs
    GIVEN_UP = "GIVEN_UP"  # `--give-up` rejected the remaining rows of an unfinished run


TRANSIENT_REASONS = (
    Reason.FETCH_FAILED,
    Reason.TIMEOUT,
    Reason.OUT_OF_MEMORY,
    Reason.DECODER_CRASH,
    Reason.NOT_FOUND,
)
"""Reasons whose cause may be gone in a later run; `--retry-rejects transient` means these."""


class Stage(StrEnum):
    """Pipeline stage in which a row was rejected."""

    MANIFEST = "manifest"
    FETCH = "fetch"
    DECODE = "decode"
    SEGMENT = "segment"
    TRANSCRIBE = "transcribe"
    RECOGNISE = "recognise"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class Reject:
    """Reason for which one manifest row has no utterance.

    Attributes:
        reason: from the closed list.
        detail: a sentence for people; the URLs in it are redacted on construction.
        stage: stage in which the row was rejected.
        attempts: number of tries.
    """

    reason: Reason
    detail: str
    stage: Stage
    attempts: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", redacted(self.detail))

    def document(self) -> dict[str, Any]:
        """Return the JSON form, whose keys are columns of `rejects`."""
        return {"reason": str(self.reason), "detail": self.detail, "stage": str(self.stage), "attempts": self.attempts}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Reject:
        """Read the JSON form. Raises: KeyError, TypeError; ValueError for an unknown reason or stage."""
        detail, attempts = document["detail"], document.get("attempts", 1)
        if not isinstance(detail, str) or not isinstance(attempts, int):
            raise TypeError("the detail of a reject is text, and its attempts are a whole number")
        return cls(Reason(document["reason"]), detail, Stage(document["stage"]), attempts)


class RejectedRow(Exception):
    """One row cannot be annotated.

    Attributes:
        reject: the reason; `reason`, `detail`, `stage` and `attempts` are its fields.
    """

    def __init__(self, reason: Reason, detail: str, stage: Stage, attempts: int = 1) -> None:
        self.reject = Reject(reason, detail, stage, attempts)
        super().__init__(f"{reason}: {self.reject.detail}")

    @classmethod
    def of(cls, reject: Reject) -> RejectedRow:
        """Return the exception that carries a reject."""
        return cls(reject.reason, reject.detail, reject.stage, reject.attempts)

    @property
    def reason(self) -> Reason:
        """See `Reject`."""
        return self.reject.reason

    @property
    def detail(self) -> str:
        """See `Reject`."""
        return self.reject.detail

    @property
    def stage(self) -> Stage:
        """See `Reject`."""
        return self.reject.stage

    @property
    def attempts(self) -> int:
        """See `Reject`."""
        return self.reject.attempts

    def __reduce__(self) -> tuple[type[RejectedRow], tuple[Reason, str, Stage, int]]:
        """Support pickling between processes, which by default passes `args` to the constructor."""
        return RejectedRow, (self.reason, self.detail, self.stage, self.attempts)


class _MessageError(Exception):
    """Base of exceptions that end a job.

    Attributes:
        message: a sentence for people, with URLs redacted. Ray Data appends advice to `args`; this field stays as it is.
    """

    def __init__(self, message: str) -> None:
        self.message = redacted(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling between processes, from the fields instead of `args`."""
        return type(self), (self.message,)


class ConfigError(_MessageError):
    """The command line, the config file, a model or the store cannot be used as requested. Exit code 2."""


class JobError(_MessageError):
    """The job cannot continue. Exit code 1; committed shards are kept, and the same command resumes."""


class NoWorkersError(JobError):
    """No worker could start or continue within the time the job may wait; other plans would fail as well."""


class OutdatedReportError(JobError):
    """The report of a published plan does not describe its parts, which were deleted since and made again."""


class StuckPlansError(JobError):
    """Some plans could not be finished.

    Attributes:
        reports: the reports of the plans that were finished.
    """

    def __init__(self, message: str, reports: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)

    def __reduce__(self) -> tuple[Any, ...]:
        """See the base class."""
        return type(self), (self.message, self.reports)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the nearest known word, or an empty string without one."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""

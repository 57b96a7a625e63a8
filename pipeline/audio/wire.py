"""What the decoding child and its parent say to one another, over two pipes.

    request: length of its head (4 bytes), the head as JSON, the file
    answer:  what it is (4 bytes), its length (8 bytes), then as many bytes

A waveform comes in pieces as it is decoded, so that the child holds none of it whole: any number of PIECE answers, then
WAVEFORM with the last piece, or the reason why the pieces are worth nothing.

The parent believes no answer: whatever a decoder went mad on may have written it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

from pipeline.audio.limits import AudioLimits
from pipeline.errors import Reason, RejectedRow, Stage

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<4sQ")

READY, PIECE, WAVEFORM, REJECTED, FAILED = b"REDY", b"PIEC", b"WAVE", b"REJT", b"FAIL"
"""Answers: the decoders are loaded; float32 samples that others follow; the last ones, or all; a `RejectedRow`; an
exception nobody foresaw, as text."""

MAX_WORDS_BYTES = 64 << 10
"""Of a reason and its detail, or of an exception."""


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `pipeline.audio.decode.decode`, but for the content, which follows."""

    content_bytes: int
    offset_s: float
    duration_s: float | None
    channel: int | None
    limits: AudioLimits

    def pack(self) -> bytes:
        """As it is sent. NaN and infinities pass, and every float exactly."""
        head = json.dumps(asdict(self)).encode()
        return REQUEST.pack(len(head)) + head

    @classmethod
    def parse(cls, head: bytes) -> Request:
        """What `pack` packed, without the length."""
        fields = json.loads(head)
        return cls(**{**fields, "limits": AudioLimits(**fields["limits"])})


def pack_rejected(rejected: RejectedRow) -> bytes:
    """A rejected row as it is sent."""
    return json.dumps([rejected.reason, rejected.detail, rejected.stage]).encode()


def parse_rejected(words: bytes) -> RejectedRow:
    """What `pack_rejected` packed. Raises: ValueError for anything else."""
    try:
        fields = json.loads(words)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not (isinstance(fields, list) and len(fields) == 3 and isinstance(fields[1], str)):
        raise ValueError("not a reason, a detail and a stage")
    return RejectedRow(Reason(fields[0]), fields[1], Stage(fields[2]))

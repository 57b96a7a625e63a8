"""Protocol between the decoding child and its parent, over two pipes.

    request: length of its head (4 bytes), the head as JSON, the file unless the child has mapped it
    answer:  its kind (4 bytes), its length (8 bytes), then as many bytes

A waveform is sent in pieces as it is decoded, so that the child never holds all of it: any number of PIECE answers,
then WAVEFORM with the last piece, or the reason for which the pieces are discarded. CHANNELS comes before the pieces of
channels that are decoded apart; each piece then has the samples of the first channel, of the second, and so on. DIFFER comes
before WAVEFORM when a file of two channels was mixed down.

The parent checks every answer, because a broken decoder may have written it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

from pipeline.audio.limits import AudioLimits
from pipeline.errors import Reason, RejectedRow, Stage

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<4sQ")
COUNT = struct.Struct("<I")

READY, PIECE, WAVEFORM, REJECTED, FAILED = b"REDY", b"PIEC", b"WAVE", b"REJT", b"FAIL"
"""Kinds of answer: the decoders are loaded; float32 samples that others follow; the last samples, or all; a
`RejectedRow`; an unexpected exception, as text."""
CHANNELS, DIFFER = b"CHAN", b"DIFF"
"""Kinds of answer before samples: the number of channels that are decoded apart, as `COUNT`; the channels that were mixed
down differ (`pipeline.audio.mixing`)."""

MAX_WORDS_BYTES = 64 << 10
"""Largest size of a reason with its detail, or of an exception."""


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of `pipeline.audio.decode.decode_pieces`, without the content, which follows the request."""

    content_bytes: int
    offset_s: float
    duration_s: float | None
    channel: int | None
    split: bool
    limits: AudioLimits

    def pack(self) -> bytes:
        """Encode the request. Every float is exact, including NaN and infinities."""
        head = json.dumps(asdict(self)).encode()
        return REQUEST.pack(len(head)) + head

    @classmethod
    def parse(cls, head: bytes) -> Request:
        """Decode the output of `pack`, without its length field."""
        fields = json.loads(head)
        return cls(**{**fields, "limits": AudioLimits(**fields["limits"])})


def pack_rejected(rejected: RejectedRow) -> bytes:
    """Encode a rejected row."""
    return json.dumps([rejected.reason, rejected.detail, rejected.stage]).encode()


def parse_rejected(words: bytes) -> RejectedRow:
    """Decode the output of `pack_rejected`. Raises: ValueError for anything else."""
    try:
        fields = json.loads(words)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not (isinstance(fields, list) and len(fields) == 3 and isinstance(fields[1], str)):
        raise ValueError("expected a reason, a detail and a stage")
    return RejectedRow(Reason(fields[0]), fields[1], Stage(fields[2]))

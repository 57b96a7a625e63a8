"""The decoding process: decodes one file at a time until its standard input ends. `pipeline.audio.sandbox` starts it.

It loads numpy, soxr, soundfile and av, and of this package only the decoding: 0.15 s. It has no credentials. Its
standard input and output are pipes. Once its libraries are loaded it cannot open another file or socket, whatever a
file makes a decoder try: its limit on open descriptors is zero. A large file is not sent through the pipe: its child is
started with the descriptor of the file, maps it, and decodes nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av.subtitles.codeccontext  # PyAV would import these two with the first file, when no file can be opened
import av.subtitles.stream  # noqa: F401
import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.content import Content
from pipeline.audio.decode import decode_pieces
from pipeline.audio.mixing import Mixing
from pipeline.audio.wire import (
    ANSWER,
    CHANNELS,
    COUNT,
    DIFFER,
    FAILED,
    MAX_WORDS_BYTES,
    PIECE,
    READY,
    REJECTED,
    REQUEST,
    WAVEFORM,
    Request,
    pack_rejected,
)
from pipeline.errors import Reason, RejectedRow, Stage

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_BUFFER_BYTES = 1 << 20
"""Buffer size: a clip is written at once; larger content bypasses the buffers without a copy."""

_OVERTIME_S = 30.0
"""Seconds after the parent's time limit when the child ends by itself, for a dead parent that the system does not
report."""

_SPARE_BYTES = 512 << 20
"""Address space for a decoder's own tables, for any file."""

_CONTENT_COPIES = 4
"""Copies of the content: the file, one without tags, and twice its size for an index (MP4 and Matroska keep theirs in
memory)."""

_WAVEFORM_COPIES = 1
"""Room for an allocator that does not return memory: a waveform is sent in pieces."""

Decode = Callable[..., Iterator[NDArray[np.float32]] | NDArray[np.float32]]


def serve(decode: Decode) -> None:
    """Answer requests until standard input ends.

    Args:
        decode: `pipeline.audio.decode.decode_pieces`, or a function that returns the whole waveform at once (tests).
    """
    requests, answers = _take_pipes()
    sys.excepthook = _telling(answers)
    _die_with_parent(int(sys.argv[1]))
    at_rest_bytes = _address_space_bytes()
    mapped = _mapped(int(sys.argv[2])) if len(sys.argv) > 2 else None
    _lock_down()
    _answer(answers, READY)
    answers.flush()
    while length := requests.read(REQUEST.size):
        request = Request.parse(requests.read(REQUEST.unpack(length)[0]))
        if at_rest_bytes:
            _bound_memory(at_rest_bytes + _allowance_bytes(request))
        content = requests.read(request.content_bytes) if mapped is None else mapped
        if len(content) < request.content_bytes:
            return  # the parent is gone
        signal.setitimer(signal.ITIMER_REAL, request.limits.patience_s(len(content)) + _OVERTIME_S)
        for kind, body in _answers(decode, request, content):
            _answer(answers, kind, body)
        del content, body
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.flush()


def _answers(decode: Decode, request: Request, content: Content) -> Iterator[tuple[bytes, memoryview | bytes]]:
    last, announced, mixing = np.empty(0, np.float32), False, Mixing()
    try:
        decoded = decode(
            content,
            offset_s=request.offset_s,
            duration_s=request.duration_s,
            channel=request.channel,
            split=request.split,
            limits=request.limits,
            mixing=mixing,
        )
        for piece in [decoded] if isinstance(decoded, np.ndarray) else decoded:
            if piece.ndim > 1 and not announced:
                announced = True
                yield CHANNELS, COUNT.pack(len(piece))
            if last.size and piece.size:
                yield PIECE, _bytes_of(last)
            last = piece if piece.size else last
    except RejectedRow as rejected:
        yield REJECTED, pack_rejected(rejected)
    except MemoryError:
        allowed = f"{_allowance_bytes(request) / 2**30:.1f} GiB"
        detail = f"decoding {len(content):,} bytes needs more than the {allowed} of memory that its limits allow"
        yield REJECTED, pack_rejected(RejectedRow(Reason.OUT_OF_MEMORY, detail, Stage.DECODE))
    else:
        if mixing.differs:
            yield DIFFER, b""
        yield WAVEFORM, _bytes_of(last)


def _bytes_of(piece: NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(piece).data.cast("B") if piece.size else memoryview(b"")


def _allowance_bytes(request: Request) -> int:
    """Return the bytes that decoding may use beyond the memory of the idle process."""
    channels = 2 if request.split else 1
    waveform = channels * round(request.limits.max_duration_s * SAMPLING_RATE) * np.dtype(np.float32).itemsize
    return _SPARE_BYTES + _CONTENT_COPIES * request.content_bytes + _WAVEFORM_COPIES * waveform


def _answer(answers: BinaryIO, kind: bytes, body: memoryview | bytes = b"") -> None:
    answers.write(ANSWER.pack(kind, len(body)))
    answers.write(body)


def _telling(answers: BinaryIO) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return an exception hook that reports a fatal exception to the parent instead of standard error."""

    def tell(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        _answer(answers, FAILED, f"{kind.__name__}: {error}".encode("utf-8", "replace")[:MAX_WORDS_BYTES])
        answers.flush()

    return tell


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes to descriptors that no library uses, and open /dev/null as standard input, output and error."""
    requests = os.fdopen(os.dup(0), "rb", buffering=_BUFFER_BYTES)
    answers = os.fdopen(os.dup(1), "wb", buffering=_BUFFER_BYTES)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return requests, answers


def _mapped(descriptor: int) -> mmap.mmap:
    """Map the file to decode and close its descriptor."""
    with os.fdopen(descriptor, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _die_with_parent(parent: int) -> None:
    """End when the parent ends, even while decoding. Linux only; elsewhere the child ends with its standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl
        sys.exit()


def _lock_down() -> None:
    """Forbid core dumps, files and further descriptors. Open descriptors remain open."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(kind, (0, 0))


def _address_space_bytes() -> int | None:
    """Return the address space in use, or None on systems without /proc, which have no such limit either (macOS)."""
    with suppress(FileNotFoundError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None


def _bound_memory(address_space_bytes: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = address_space_bytes if most == resource.RLIM_INFINITY else min(address_space_bytes, most)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


if __name__ == "__main__":
    serve(decode_pieces)

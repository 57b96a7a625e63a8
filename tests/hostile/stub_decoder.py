"""A decoding child that does on request what a decoder with a bug does; every other file it decodes as it should.

The request is the content: `STUB ` and one of `ACTS`. Run by a `Sandbox` that is given this module's name.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.audio import decode as real
from pipeline.audio.child import serve
from pipeline.errors import Reason, RejectedRow, Stage

MODULE = "tests.hostile.stub_decoder"
_NONE = np.zeros(1_000, np.float32)
_kept: list[bytearray] = []
_poisoned = False


def stub(act: str) -> bytes:
    """The content of a file that does it."""
    return b"STUB " + act.encode()


def _forever() -> None:
    while True:
        pass


def _say(words: bytes) -> None:
    """Into every pipe there is."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, words)
        except OSError:
            continue


def _close() -> None:
    os.closerange(3, 20)
    time.sleep(600)


def _chatter() -> None:
    for descriptor in (1, 2):
        os.write(descriptor, b"[mp3 @ 0x7f] Header missing\n" * 50_000)
    print("and so on", flush=True)
    sys.stderr.write("and on\n")


def _allocate() -> None:
    while True:
        _kept.append(bytearray(64 << 20))


def _leak() -> None:
    try:
        _allocate()
    except MemoryError:
        del _kept[-2:]


def _poison() -> None:
    global _poisoned  # noqa: PLW0603 - what a wild write into another file's memory amounts to
    _poisoned = True


def _open_something() -> None:
    ways = [lambda: open("/etc/passwd", "rb"), socket.socket, os.pipe, lambda: os.dup(1)]  # noqa: PTH123, SIM115
    for number, way in enumerate(ways):
        try:
            way()
        except OSError:
            continue
        raise RejectedRow(Reason.DAMAGED, f"way {number} is open", Stage.DECODE)


def _unforeseen() -> None:
    raise KeyError("a bug of ours")


ACTS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), 9),
    "close": _close,
    "garbage": lambda: _say(b"\xde\xad\xbe\xef" * 64),
    "a huge answer": lambda: _say(struct.pack("<4sQ", b"WAVE", 1 << 60)),
    "an empty answer": lambda: _say(struct.pack("<4sQ", b"WAVE", 0)),
    "channels that were not asked for": lambda: _say(struct.pack("<4sQ", b"CHAN", 4) + struct.pack("<I", 2)),
    "half an answer": lambda: (_say(struct.pack("<4sQ", b"WAVE", 4_000) + bytes(999)), os._exit(0)),
    "NaN": lambda: _say(struct.pack("<4sQ", b"WAVE", 4_000) + np.full(1_000, np.nan, np.float32).tobytes()),
    "an unknown reason": lambda: _say(struct.pack("<4sQ", b"REJT", 14) + b'["A", "b", 99]'),
    "nested words": lambda: _say(struct.pack("<4sQ", b"REJT", 60_000) + b"[" * 60_000),
    "endless words": lambda: _say(struct.pack("<4sQ", b"FAIL", 1 << 40)),
    "loop": _forever,
    "sleep": lambda: time.sleep(600),
    "nap": lambda: time.sleep(1),
    "allocate": _allocate,
    "allocate at once": lambda: bytearray(1 << 45),
    "leak": _leak,
    "poison": _poison,
    "chatter": _chatter,
    "open": _open_something,
    "unforeseen": _unforeseen,
}


def decode(content: bytes, **options: object) -> np.ndarray | Iterator[np.ndarray]:
    if _poisoned:
        ctypes.string_at(0)
    if content.startswith(b"STUB "):
        ACTS[content[5:].decode()]()
        return _NONE
    return real.decode_pieces(content, **options)


if __name__ == "__main__":
    serve(decode)

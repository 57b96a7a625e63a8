"""Decoding in a child process: a file that crashes, hangs or exhausts the decoder is rejected and affects nothing else.

Each worker has one child (`pipeline.audio.child`), started with its first file. A file that breaks its child is
rejected with DECODER_CRASH, TIMEOUT or OUT_OF_MEMORY, and the next file gets a new child. When a child that has
decoded other files crashes or runs out of memory, those files may be the cause, so the file is tried once more in a
fresh child, and only that result counts. The waveform is bit for bit that of `pipeline.audio.decode.decode` called
here.

The child sees no credentials, can open no file or socket, and dies with this process. It is no barrier against code
that a file smuggles into a decoder: that code runs as the same user. Costs: 0.3 ms more than decoding here for 4 s
of 16-bit WAV (0.55 against 0.24), 0.8 s for an hour of it, which is copied once into each pipe and once out; 0.15 to
0.3 s for each start; 50 MB at rest, most of it pages of libraries that all children share. Samples are sent as they
are decoded, so the child holds the file and a few MB, this process the file and the waveform. A large file is passed
as a file on disk, so that only the waveform is held: four hours of stereo FLAC at 44.1 kHz, 1.7 GiB.
"""

from __future__ import annotations

import atexit
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.environment import child_environment
from pipeline.audio.joined import Joined
from pipeline.audio.limits import DEFAULT_LIMITS, AudioLimits
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
    WAVEFORM,
    Request,
    parse_rejected,
)
from pipeline.errors import JobError, Reason, RejectedRow, Stage

CHILD = "pipeline.audio.child"

_START_S = 120.0
_STARTS = 2
"""Starts attempted. A child loads in 0.3 s, from a cold network disk in many seconds; being killed while starting
may happen once."""

_SLICE_S = 1.0
"""Longest interval counted at once against the time limit, so that a suspended machine or a stopped worker does not
use it up."""

_LAST_WORDS_S = 2.0
"""Seconds to wait for the exit status of a child that closed its output."""

_SHOWN = 200
"""Longest exception message, in characters, as in `pipeline.shard.context.guard`."""

_MAY_BE_ANOTHERS = (Reason.DECODER_CRASH, Reason.OUT_OF_MEMORY, Reason.INTERNAL)
"""Reasons that an earlier file may cause, by overwriting memory or not returning it."""


class _Gone(Exception):
    """The child closed its output."""


class _Garbled(Exception):
    """The child sent an invalid answer."""


class _Hung(Exception):
    """The child did not answer in time."""


class Decoded(NamedTuple):
    """A decoded file.

    Attributes:
        channels: float32 [num_samples] at 16 kHz of each channel, or of one alone: that asked for, or the mean.
        differ: the mean is that of two channels that differ (`pipeline.audio.mixing`).
    """

    channels: list[NDArray[np.float32]]
    differ: bool


class Sandbox:
    """Decoder in a child process, which is started, killed and restarted as files require.

    Threads may share one; they take turns. A forked process gets a child of its own. A child is killed when the
    thread that started it ends (PR_SET_PDEATHSIG); another thread's file is then tried again in a new child.

    Args:
        module: the module that the child runs; tests pass their own.
    """

    def __init__(self, module: str = CHILD) -> None:
        self._module = module
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def decode(
        self,
        content: bytes | BinaryIO,
        *,
        offset_s: float = 0.0,
        duration_s: float | None = None,
        channel: int | None = None,
        limits: AudioLimits = DEFAULT_LIMITS,
    ) -> NDArray[np.float32]:
        """Decode one file: arguments, result and rejections are those of `pipeline.audio.decode.decode`.

        Args:
            content: the bytes, or a file on disk, which a child of its own maps: neither process then holds its bytes.
        Raises: RejectedRow, in addition with DECODER_CRASH, TIMEOUT (after `limits.patience_s`), OUT_OF_MEMORY, and
            INTERNAL for an exception that `decode` does not expect; JobError when no child can be started.
        """
        size = len(content) if isinstance(content, bytes) else os.fstat(content.fileno()).st_size
        return self._decoded(Request(size, offset_s, duration_s, channel, False, limits), content).channels[0]

    def decode_channels(
        self,
        content: bytes | BinaryIO,
        *,
        offset_s: float = 0.0,
        duration_s: float | None = None,
        channel: int | None = None,
        split: bool,
        limits: AudioLimits = DEFAULT_LIMITS,
    ) -> Decoded:
        """Decode one file as `decode` does; with `split` every channel, unless one is given."""
        size = len(content) if isinstance(content, bytes) else os.fstat(content.fileno()).st_size
        return self._decoded(Request(size, offset_s, duration_s, channel, split, limits), content)

    def _decoded(self, request: Request, content: bytes | BinaryIO) -> Decoded:
        if not isinstance(content, bytes):
            return self._decode_mapped(request, content)
        if self._owner != os.getpid():
            self._disown()
        with self._lock:
            if self._child is not None and self._child.alive:
                try:
                    return self._child.decode(request, content)
                except RejectedRow as rejected:
                    if rejected.reason not in _MAY_BE_ANOTHERS:
                        raise
                    self._child.kill()
            self._child = _start(self._module)
            return self._child.decode(request, content)

    def _decode_mapped(self, request: Request, file: BinaryIO) -> Decoded:
        child = _start(self._module, file.fileno())
        try:
            return child.decode(request, b"")
        finally:
            child.kill()

    def close(self) -> None:
        """End the child. A later file starts another."""
        if self._child is not None and self._owner == os.getpid():
            self._child.kill()

    def _disown(self) -> None:
        """Drop the child and the lock after a fork: both are the other process's, and no thread here releases it."""
        if self._child is not None:
            self._child.disown()
        self._owner, self._lock, self._child = os.getpid(), threading.Lock(), None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def sandbox() -> Sandbox:
    """Return the sandbox of this process, which is closed at exit."""
    made = Sandbox()
    atexit.register(made.close)
    return made


def _start(module: str, mapped: int | None = None) -> _Child:
    """Start a child and return it when it is ready.

    Args:
        mapped: descriptor of a file that the child maps.
    Raises: JobError with the child's message.
    """
    for _ in range(_STARTS):
        try:
            child = _Child(module, mapped)
        except OSError as error:
            raise JobError(f"the audio decoder process could not be started: {error}") from error
        if (trouble := child.trouble_starting()) is None:
            return child
    raise JobError(f"the audio decoder process could not be started: {trouble}")


class _Child:
    """One child process and the pipes to it."""

    def __init__(self, module: str, mapped: int | None = None) -> None:
        inherited = () if mapped is None else (mapped,)
        command = [sys.executable, "-P", "-m", module, str(os.getpid()), *map(str, inherited)]
        pipe, env = subprocess.PIPE, child_environment(os.environ)
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=env,
            bufsize=0,
            start_new_session=True,
            pass_fds=inherited,
        )
        self._pipes = [stream for stream in (self._process.stdin, self._process.stdout, self._process.stderr) if stream]
        self._to, self._from, self._words = (stream.fileno() for stream in self._pipes)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._to, select.POLLOUT)
        self._readable.register(self._from, select.POLLIN)
        self._patience_s = 0.0
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)

    @property
    def alive(self) -> bool:
        """Return whether the child can take another file."""
        return self._process.returncode is None

    def trouble_starting(self) -> str | None:
        """Wait until the child is ready. Returns: None, or the reason for a failed start, after killing the child."""
        self._patience_s = _START_S
        trouble = "its first answer is invalid"
        try:
            if self._receive(ANSWER.size) == ANSWER.pack(READY, 0):
                self._pipes.pop().close()  # standard error, which is needed only for a failed import
                return None
        except _Gone:
            said = self._pipes[-1].read().decode("utf-8", "replace").strip()
            trouble = said.rpartition("\n")[2] or self._how_it_ended()
        except _Hung:
            trouble = f"it was not ready after {_START_S:g} s"
        self.kill()
        return trouble

    def decode(self, request: Request, content: bytes) -> Decoded:
        """Decode one file. The child keeps running unless the file broke it.

        Args:
            content: the bytes, or none if the child has mapped the file.
        """
        self._patience_s = patience_s = request.limits.patience_s(request.content_bytes)
        answered = differ = False
        try:
            self._send(request.pack())
            self._send(content)
            channels = [Joined()]
            kind, size = ANSWER.unpack(self._receive(ANSWER.size))
            while kind in (CHANNELS, PIECE, DIFFER):
                if kind == PIECE:
                    self._receive_samples(size, channels, request.limits)
                elif kind == CHANNELS:
                    channels = self._receive_count(size, channels, request)
                differ = differ or kind == DIFFER
                kind, size = ANSWER.unpack(self._receive(ANSWER.size))
            if kind == WAVEFORM:
                self._receive_samples(size, channels, request.limits)
            else:
                rejected = self._rejected(kind, size)
            answered = kind != FAILED
        except _Hung:
            raise _reject(Reason.TIMEOUT, f"decoding did not finish within {patience_s:.0f} s", request) from None
        except _Garbled:
            raise _reject(Reason.DECODER_CRASH, "the decoder sent an invalid answer", request) from None
        except _Gone:
            raise _reject(Reason.DECODER_CRASH, f"the decoder {self._how_it_ended()}", request) from None
        finally:
            if not answered:
                self.kill()
        if kind == WAVEFORM:
            return Decoded([waveform.finish() for waveform in channels], differ)
        raise rejected

    def _receive_count(self, size: int, channels: list[Joined], request: Request) -> list[Joined]:
        """Read the number of channels, which comes first and once, and return an array for each."""
        if not request.split or size != COUNT.size or len(channels[0]):
            raise _Garbled
        (count,) = COUNT.unpack(self._receive(size))
        if not 1 <= count <= request.limits.max_channels:
            raise _Garbled
        return [Joined() for _ in range(count)]

    def _receive_samples(self, size: int, channels: list[Joined], limits: AudioLimits) -> None:
        """Read samples directly into the arrays of their channels."""
        num_samples, rest = divmod(size, len(channels) * np.dtype(np.float32).itemsize)
        limits = limits.of_channels(len(channels))
        most = math.ceil(limits.max_duration_s * SAMPLING_RATE) + SAMPLING_RATE
        if rest or not 0 < len(channels[0]) + num_samples <= most:
            raise _Garbled
        for waveform in channels if num_samples else ():
            samples = waveform.reserve(num_samples)
            self._receive_into(samples.data.cast("B"))
            if not math.isfinite(samples.min() + samples.max()):  # NaN in any of them makes both NaN
                raise _Garbled

    def _rejected(self, kind: bytes, size: int) -> RejectedRow:
        if kind not in (REJECTED, FAILED) or size > MAX_WORDS_BYTES:
            raise _Garbled
        words = self._receive(size)
        if kind == FAILED:
            said = words.decode("utf-8", "replace")
            reason = Reason.OUT_OF_MEMORY if said.startswith("MemoryError") else Reason.INTERNAL
            return RejectedRow(reason, said[:_SHOWN], Stage.DECODE)
        try:
            return parse_rejected(words)
        except ValueError:
            raise _Garbled from None

    def _send(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                self._wait(self._writable)
            except BrokenPipeError:
                raise _Gone from None

    def _receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, left: memoryview) -> None:
        while left:
            self._wait(self._readable)
            received = os.readv(self._from, [left])
            if received == 0:
                raise _Gone
            left = left[received:]

    def _wait(self, poller: select.poll) -> None:
        ready: list[tuple[int, int]] = []
        while not ready:
            if self._patience_s <= 0:
                raise _Hung
            begun = time.monotonic()
            ready = poller.poll(math.ceil(min(_SLICE_S, self._patience_s) * 1000))
            self._patience_s -= min(time.monotonic() - begun, _SLICE_S)

    def _how_it_ended(self) -> str:
        """Return a verb phrase for the end of a child that closed its output."""
        try:
            status = self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status >= 0:
            return f"exited with status {status}"
        killer = "" if status != -signal.SIGKILL else ", which the system sends when memory runs out"
        return f"was killed by {signal.Signals(-status).name}{killer}"

    def kill(self) -> None:
        """Kill the child and all processes it started, and reap it."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a zombie
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.disown()

    def disown(self) -> None:
        """Close the pipes, and forget a process that has ended or belongs to another process."""
        self._process.returncode = self._process.returncode or 0
        for stream in self._pipes:
            stream.close()


def _reject(reason: Reason, what: str, request: Request) -> RejectedRow:
    return RejectedRow(reason, f"{what} (a file of {request.content_bytes:,} bytes)", Stage.DECODE)

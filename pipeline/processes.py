"""Child processes: their environment and signal mask, and a server that forks them from a process with modules imported.

usage: python -P -m pipeline.processes LISTENER MODULE [MODULE ...], with the file descriptor of a listening socket; it ends
       when its standard input does

A request is JSON with three file descriptors; the answer is two lines, the process id of the fork and its exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

FORK_SERVER = "SPEECH_EMOTION_FORK_SERVER"
"""Environment variable with the name of this job's fork server."""
_PEER = struct.Struct("3i")
"""The process, user and group at the other end of a socket."""
_MESSAGES_WITHIN_S = 10.0


def search_path() -> str:
    """Return a PYTHONPATH with which a child process finds the same modules, whatever its working directory."""
    root = Path(__file__).parents[1]
    return os.pathsep.join(dict.fromkeys([str(root), *(str(Path(entry).absolute()) for entry in sys.path)]))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT, so that Ctrl-C does not reach children started in the block.

    Such children share the terminal's process group, but inherit the signal mask; not even their first imports can
    raise a KeyboardInterrupt. A signal that arrives meanwhile is delivered to this process when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[None]:
    """Start a process that imports modules and then forks itself for each request; end it after the block.

    The forks share the memory of the imports, and start in a tenth of a second instead of several. Linux only. The
    environment variable `FORK_SERVER` names the server in the block; it serves only processes of the same user.
    """
    name = f"speech-emotion-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(128)  # requests wait there while the server imports
        with interrupts_blocked():
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": search_path()},
                pass_fds=[listener.fileno()],
            )
    os.environ[FORK_SERVER] = name
    try:
        yield
    finally:
        os.environ.pop(FORK_SERVER, None)
        server.kill()
        cast(Any, server.stdin).close()
        server.wait()


def request_fork(module: str, arguments: Sequence[str], streams: Sequence[int], *, tied: bool = False) -> socket.socket:
    """Ask the fork server to run `module.main()` with the arguments and standard streams given, and with the environment,
    working directory and signal mask of this process. The fork leads a process group of its own if this process does.

    Args:
        tied: kill the fork when the returned connection is closed.

    Returns: the connection, which gets the answer.
    Raises: OSError when there is no fork server.
    """
    if FORK_SERVER not in os.environ:
        raise FileNotFoundError("this process has no fork server")
    request = {
        "module": module,
        "arguments": list(arguments),
        "env": dict(os.environ),
        "folder": str(Path.cwd()),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "leads": os.getpgrp() == os.getpid(),
        "tied": tied,
    }
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"\0{os.environ[FORK_SERVER]}")
        socket.send_fds(connection, [b"\n"], streams)
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError:
        connection.close()
        raise
    return connection


class Fork:
    """A fork of the server with pipes to its standard input and output; behaves like a `subprocess.Popen`.

    Raises: OSError when there is no fork server.
    """

    def __init__(self, module: str) -> None:
        its_stdin, stdin = os.pipe()
        stdout, its_stdout = os.pipe()
        self.stdin: TextIO = os.fdopen(stdin, "w", encoding="utf-8")
        self.stdout: TextIO = os.fdopen(stdout, encoding="utf-8")
        try:
            self._connection = request_fork(module, (), (its_stdin, its_stdout, 2), tied=True)
        except OSError:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            os.close(its_stdin)
            os.close(its_stdout)
        self._killed = False

    def kill(self) -> None:
        """End the fork, or do nothing if it has ended."""
        self._killed = True
        self._connection.close()

    def wait(self) -> int:
        """Wait for the end of the fork. Returns: its exit status, as `subprocess.Popen.wait` does."""
        if self._killed:
            return -signal.SIGKILL
        with self._connection.makefile() as answer:
            lines = answer.read().split()
        return int(lines[1]) if len(lines) > 1 else -signal.SIGKILL


class _Server:
    """The requests of a fork server, and its forks by the descriptors that tell of their ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._forks: dict[int, tuple[int, socket.socket]] = {}
        self._tied: dict[int, int] = {}
        """Process ids of forks by their connections."""

    def serve(self) -> tuple[dict[str, Any], list[int]] | None:
        """Fork for each request. Returns: in a fork its request and streams; in the server, at the end, None."""
        while True:
            ready, _, _ = select.select([0, self._listener.fileno(), *self._forks, *self._tied], [], [])
            if 0 in ready:
                return None
            for descriptor in ready:
                if descriptor in self._forks:
                    self._reap(descriptor)
                elif descriptor in self._tied:
                    os.kill(self._tied.pop(descriptor), signal.SIGKILL)
            if self._listener.fileno() in ready and (received := self._accept()):
                request, streams, connection = received
                if self._fork(request, connection):
                    return request, streams
                for stream in streams:
                    os.close(stream)

    def _accept(self) -> tuple[dict[str, Any], list[int], socket.socket] | None:
        """Read one request. Returns: None when it comes from another user, or is incomplete."""
        connection, _ = self._listener.accept()
        connection.settimeout(_MESSAGES_WITHIN_S)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        streams: list[int] = []
        if _PEER.unpack(peer)[1] == os.getuid():
            with suppress(OSError, ValueError), connection.makefile("rb") as lines:
                _, streams, _, _ = socket.recv_fds(connection, 1, 3)
                return json.loads(lines.readline()), streams, connection
        for descriptor in streams:
            os.close(descriptor)
        connection.close()
        return None

    def _fork(self, request: dict[str, Any], connection: socket.socket) -> bool:
        """Fork, and answer with the process id. Returns: whether this process is the fork."""
        forked = os.fork()
        if not forked:
            for descriptor, (_, other) in self._forks.items():
                os.close(descriptor)
                other.close()
            self._listener.close()
            connection.close()
            return True
        self._forks[os.pidfd_open(forked)] = (forked, connection)
        if request["tied"]:
            self._tied[connection.fileno()] = forked
        with suppress(OSError):
            connection.sendall(b"%d\n" % forked)
        return False

    def _reap(self, descriptor: int) -> None:
        """Answer with the exit status of a fork that has ended."""
        forked, connection = self._forks.pop(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        self._tied.pop(connection.fileno(), None)
        with suppress(OSError), connection:
            connection.sendall(b"%d\n" % status)


def main() -> None:
    """Import the modules, then fork for each request."""
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would otherwise write to every page, and so copy it
    served = server.serve()
    if served is None:
        os._exit(0)
    _run(*served)


def _run(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Run the module of a request as a process of its own would."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["leads"]:
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = dict.fromkeys([*paths, *sys.path])
    sys.argv[1:] = request["arguments"]
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    importlib.import_module(request["module"]).main()


if __name__ == "__main__":
    main()

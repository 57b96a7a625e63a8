"""Child processes: their environment and signal mask, and a server that forks them from a process with modules imported.

usage: python -P -m pipeline.processes LISTENER MODULE [MODULE ...], with the file descriptor of a listening socket; it ends
       when its standard input does
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

_PEER = struct.Struct("3i")
"""The process, user and group at the other end of a socket."""
_REQUEST_WITHIN_S = 10.0
_STREAMS = 3
"""Standard input, output and error."""


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
def fork_server(modules: Sequence[str]) -> Iterator[str]:
    """Start a process that imports modules and then forks itself for each `request_fork`; end it after the block.

    The forks share the memory of the imports, and start in a tenth of a second instead of several. Linux only.

    Yields: the server's name. Only processes of the same user are served.
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
    try:
        yield name
    finally:
        server.kill()
        cast(Any, server.stdin).close()
        server.wait()


def request_fork(
    server: str, module: str, arguments: Sequence[str], *, env: Mapping[str, str], streams: tuple[int, int, int]
) -> int:
    """Ask a fork server to run `module.main()` with the arguments, streams and environment given, and this process's
    working directory and signal mask.

    Returns: the process id of the fork.
    Raises: OSError when there is no such server.
    """
    request = {
        "module": module,
        "arguments": list(arguments),
        "env": dict(env),
        "folder": str(Path.cwd()),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{server}")
        socket.send_fds(connection, [b"\n"], list(streams))
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        if not (answer := connection.recv(32)):
            raise ConnectionError("the fork server ended before it forked")
        return int(answer)


def _next_request(listener: socket.socket) -> tuple[dict[str, Any], list[int], socket.socket] | None:
    """Wait for a request of this user. Returns: None when standard input has ended."""
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return None
        connection, _ = listener.accept()
        connection.settimeout(_REQUEST_WITHIN_S)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        streams: list[int] = []
        if _PEER.unpack(peer)[1] == os.getuid():
            try:
                _, streams, _, _ = socket.recv_fds(connection, 1, _STREAMS)
                with connection.makefile("rb") as request:
                    return json.loads(request.read()), streams, connection
            except (OSError, ValueError):  # the other process ended before it had sent all
                pass
        for descriptor in streams:
            os.close(descriptor)
        connection.close()


def main() -> None:
    """Import the modules, then fork for each request; a fork runs its module, which the server imports before the first fork."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the forks
    while (received := _next_request(listener)) is not None:
        request, streams, connection = received
        if request["module"] not in sys.modules:
            os.environ.update(request["env"])
            importlib.import_module(request["module"])
            gc.collect()
            gc.freeze()  # a collection in a fork would otherwise write to every page, and so copy it
        forked = os.fork()
        if not forked:
            listener.close()
            connection.close()
            _run(request, streams)
            return
        connection.sendall(str(forked).encode())
        connection.close()
        for descriptor in streams:
            os.close(descriptor)
    os._exit(0)


def _run(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Run the module of a request as a process of its own would."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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

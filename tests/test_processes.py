"""Forks of a process with modules imported: they run as processes of their own would."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.processes import FORK_SERVER, Fork, fork_server, request_fork
from tests.support.processes import until

PROGRAM = """
import json, os, signal, sys, time
IMPORTED_BY = os.getpid()
def main():
    order = sys.stdin.readline()
    if order == "sleep\\n":
        time.sleep(100)
    state = [sys.argv[1:], os.environ.get("GIVEN"), os.getcwd(), os.getppid() == IMPORTED_BY,
             signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getpgrp() == os.getpid()]
    print(json.dumps(state), flush=True)
    sys.exit(int(order or 0))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fork server that finds the program."""
    (tmp_path / "forked_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(FORK_SERVER, raising=False)
    with fork_server(["forked_program"]):
        yield
    assert FORK_SERVER not in os.environ


@pytest.mark.usefixtures("server")
def test_a_fork_is_like_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a fork gets the server's environment, folder, arguments, streams, signal mask or group, or imports anew."""
    for number in range(2):
        monkeypatch.setenv("GIVEN", str(number))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(os, "getpgrp", lambda leads=number: os.getpid() if leads else 1)
        reader, writer = os.pipe()
        with Path(os.devnull).open() as nothing, os.fdopen(reader) as output:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            with request_fork("forked_program", ["a", "b"], (nothing.fileno(), writer, 2)) as connection:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                os.close(writer)
                assert json.loads(output.read()) == [["a", "b"], str(number), str(tmp_path), True, True, bool(number)]
                assert connection.makefile().read().split()[1:] == ["0"]


@pytest.mark.usefixtures("server")
def test_forks_end_with_their_status_or_are_killed() -> None:
    """Fails if the end of a fork is not noticed, one fork's end is taken for another's, or a killed fork goes on."""
    asleep, ended = Fork("forked_program"), Fork("forked_program")
    with asleep.stdin, asleep.stdout, ended.stdin, ended.stdout:
        for fork, order in ((asleep, "sleep\n"), (ended, "7\n")):
            fork.stdin.write(order)
            fork.stdin.flush()
        assert json.loads(ended.stdout.read())[0] == [] and ended.wait() == 7
        pid = int(asleep._connection.recv(32))
        asleep.kill()
        until(lambda: not Path(f"/proc/{pid}").exists())
        assert asleep.wait() == -signal.SIGKILL
        ended.kill()


def test_without_a_server_there_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a caller cannot tell that it must start a process itself, or waits for a server that has ended."""
    for name in (None, "speech-emotion-nobody"):
        monkeypatch.delenv(FORK_SERVER, raising=False)
        if name:
            monkeypatch.setenv(FORK_SERVER, name)
        with pytest.raises(OSError, match=r"no fork server|refused"):
            Fork("forked_program")

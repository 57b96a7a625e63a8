"""A cluster that is gone is spoken of before Ray's native code ends the driver without a word."""

from __future__ import annotations

import io
import socket

from pipeline.engine import heartbeat
from pipeline.engine.heartbeat import watched
from tests.support.processes import until


class Knocks:
    """The real knock, counted, so that a test waits for knocks and not for seconds."""

    def __init__(self, monkeypatch, answers=None):
        self.count = 0
        self._real = answers or heartbeat._answers
        monkeypatch.setattr(heartbeat, "_EVERY_S", 0.002)
        monkeypatch.setattr(heartbeat, "_answers", self)

    def __call__(self, address):
        self.count += 1
        return self._real(address)

    def wait(self, more):
        """Return after so many more knocks."""
        wanted = self.count + more
        until(lambda: self.count >= wanted, 20.0)


def test_who_does_not_answer_is_named_once(monkeypatch):
    """Fails if nobody is told that the head is gone, or the log fills with it, or a live one is named."""
    out, knocks = io.StringIO(), Knocks(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.create_server(("127.0.0.1", 0)) as head:
        addresses = {"Ray's head": head.getsockname(), "Ray on this node": alive.getsockname()}
        with watched(addresses, out):
            knocks.wait(10)
            assert out.getvalue() == ""
            head.close()
            until(lambda: out.getvalue() != "", 20.0)
            knocks.wait(10)
    (line,) = out.getvalue().strip().splitlines()
    assert line.startswith("Ray's head at 127.0.0.1:") and "run the same command again" in line
    assert "this node" not in line


def test_a_hiccup_is_not_a_loss(monkeypatch):
    """Fails if one knock without an answer is an alarm."""
    answers = iter([False])
    out, knocks = io.StringIO(), Knocks(monkeypatch, lambda _: next(answers, True))
    with watched({"Ray's head": ("127.0.0.1", 1)}, out):
        knocks.wait(10)
    assert out.getvalue() == ""

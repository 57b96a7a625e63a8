"""A cluster that is gone is spoken of before Ray's native code ends the driver without a word."""

from __future__ import annotations

import io
import socket
import time

import pytest

from pipeline.engine import heartbeat
from pipeline.engine.heartbeat import heard


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.05)


def _until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_who_does_not_answer_is_named_once():
    """Fails if nobody is told that the head is gone, or the log fills with it, or a live one is named."""
    out = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.create_server(("127.0.0.1", 0)) as head:
        addresses = {"Ray's head": head.getsockname(), "Ray on this node": alive.getsockname()}
        with heard(addresses, out):
            time.sleep(0.3)
            assert out.getvalue() == ""
            head.close()
            assert _until(out.getvalue)
            time.sleep(0.3)
    (line,) = out.getvalue().strip().splitlines()
    assert line.startswith("Ray's head at 127.0.0.1:") and "the same command goes on" in line
    assert "this node" not in line


def test_a_hiccup_is_not_a_loss(monkeypatch):
    """Fails if one knock without an answer is an alarm."""
    answers = iter([False] + [True] * 1000)
    monkeypatch.setattr(heartbeat, "_answers", lambda _: next(answers))
    out = io.StringIO()
    with heard({"Ray's head": ("127.0.0.1", 1)}, out):
        time.sleep(0.4)
    assert out.getvalue() == ""

"""What a person sees while a job runs."""

from __future__ import annotations

import io
import time

import pytest

from pipeline import progress
from pipeline.finish import Finished
from pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def shard(rows: int = 10, *, rejects: int = 0, audio_s: float = 0.0, won: bool = True) -> Finished:
    return Finished("000001", 0, won, rows, rows - rejects, ("NOT_FOUND",) * rejects, audio_s, {})


def shown(rows: int, out: io.StringIO, **more: object) -> Progress:
    return Progress(rows=rows, out=out, _started=1000.0, **more)


def test_the_line(clock):
    """Fails if rows, share, audio hours, rejects, speed or the time left are missing or wrong."""
    display = shown(4_000, io.StringIO())
    clock.now += 100.0
    display.add(shard(1_000, rejects=3, audio_s=7_200.0))
    assert display.line() == "1,000 of 4,000 rows (25%)  2.00 h audio  3 rejects  72.0x real time  0:05:00 left"


def test_time_left_is_of_this_run(clock):
    """Fails if rows that earlier runs did count as speed of this one."""
    display = shown(300, io.StringIO(), done=100)
    clock.now += 10.0
    display.add(shard(100))
    assert "200 of 300 rows (67%)" in display.line() and "0:00:10 left" in display.line()


def test_before_anything_is_done(clock):
    """Fails if the first line divides by zero, or promises a time nobody knows."""
    assert "time left unknown" in shown(10, io.StringIO()).line()
    assert "0 of 0 rows (0%)" in shown(0, io.StringIO()).line()
    display = shown(1, io.StringIO())
    display.add(shard(1, audio_s=1.0))  # no time has passed
    assert "0:00:00 left" in display.line()


@pytest.mark.parametrize("rows", [10, 1])
def test_an_estimate_of_what_was_done_is_never_more_than_all(clock, rows):
    """Fails if a resumed run shows more than 100 % or a negative time, since `done` is only estimated."""
    display = shown(rows, io.StringIO(), done=5)
    clock.now += 10.0
    display.add(shard(8))
    assert f"{rows} of {rows} rows (100%)" in display.line() and "0:00:00 left" in display.line()


def wait_for(text: str, out: io.StringIO, count: int = 1) -> None:
    deadline = time.perf_counter() + 20
    while out.getvalue().count(text) < count:
        assert time.perf_counter() < deadline, out.getvalue()
        time.sleep(0.005)


def test_a_terminal_has_one_line_that_changes(monkeypatch):
    """Fails if the live line scrolls, stands still while a shard takes long, or leaves the cursor in it at the end."""
    monkeypatch.setattr(progress, "_LIVE_EVERY_S", 0.01)
    out = Terminal()
    display = Progress(rows=30, out=out).start()
    wait_for("\r\x1b[2K0 of 30 rows", out, count=2)
    display.add(shard(30))
    wait_for("\r\x1b[2K30 of 30 rows (100%)", out)
    assert "\n" not in out.getvalue()
    display.close()
    written = out.getvalue()
    assert written.endswith("left\n") and written.count("\n") == 1
    assert not display._ticker.is_alive(), "the line goes on after its end"


def test_elsewhere_a_plain_line_every_so_often(monkeypatch):
    """Fails if a log file gets control characters, a line for each shard, or none at the end."""
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "_LIVE_EVERY_S", 1e-6)
    out = io.StringIO()
    display = Progress(rows=100, out=out).start()
    for _ in range(10):
        display.add(shard(10))
    wait_for("100 of 100 rows", out, count=2)
    display.close()
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) < 1000 and lines[-1].startswith("100 of 100 rows (100%)")
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_a_run_shorter_than_the_first_line():
    """Fails if a job of a second says nothing, or waits for half a minute to end."""
    out, started = io.StringIO(), time.perf_counter()
    display = Progress(rows=10, out=out).start()
    display.add(shard(10))
    display.close()
    assert out.getvalue().splitlines()[-1].startswith("10 of 10 rows (100%)")
    assert time.perf_counter() - started < 5


def test_shards_another_run_committed_are_counted(clock):
    """Fails if a run does not know which of its shards were lost to another."""
    display = shown(20, io.StringIO())
    display.add(shard(won=False))
    display.add(shard(rejects=2))
    assert (display.lost, display.finished, display.rejects, display.utterances) == (1, 20, 2, 18)


def test_long_times_read_well(clock):
    """Fails if hours or days of time left are shown as seconds."""
    display = shown(1_000_001, io.StringIO())
    clock.now += 1.0
    display.add(shard(1))
    assert "277:46:40 left" in display.line()

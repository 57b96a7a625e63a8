"""The progress display of a job: one live line on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from pipeline.engine.job_log import JsonLines
from pipeline.errors import Reason
from pipeline.shard.commit import NO_ACCESS, Finished

_LIVE_EVERY_S = 0.5
_PLAIN_EVERY_S = 30.0


@dataclass
class Progress:
    """Counter and display of finished shards.

    Attributes:
        rows: manifest rows of the run, including those finished earlier.
        done: rows that earlier runs finished.
    """

    rows: int
    done: int = 0
    out: TextIO = sys.stderr
    finished: int = 0
    utterances: int = 0
    rejects: int = 0
    denied: int = 0
    absent: int = 0
    audio_s: float = 0.0
    lost: int = 0
    _started: float = field(default_factory=time.monotonic)
    _ended: threading.Event = field(default_factory=threading.Event)
    _ticker: threading.Thread | None = None

    def start(self) -> Progress:
        """Start to show the line at regular intervals, until `close`. Returns: itself."""
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def _tick(self) -> None:
        every = _LIVE_EVERY_S if self.out.isatty() else _PLAIN_EVERY_S
        while not self._ended.wait(every):
            self.show()

    def add(self, shard: Finished) -> None:
        """Count one shard."""
        self.finished += shard.rows
        self.utterances += shard.utterances
        self.rejects += len(shard.rejects)
        self.denied += sum(reason in NO_ACCESS for reason in shard.rejects)
        self.absent += sum(reason in (Reason.NOT_FOUND, Reason.REFUSED) for reason in shard.rejects)
        self.audio_s += shard.audio_s
        self.lost += not shard.won

    def show(self) -> None:
        """Write the current line, or its numbers where messages are JSON."""
        if isinstance(self.out, JsonLines):
            self.out.event(self.figures())
            return
        line = self.line()
        if self.out.isatty():
            columns = shutil.get_terminal_size().columns
            self.out.write(f"\r\x1b[2K{line[: columns - 1]}")
        else:
            self.out.write(f"{line}\n")
        self.out.flush()

    def close(self) -> None:
        """Write the last line and end it."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
        self.show()
        if self.out.isatty():
            self.out.write("\n")

    def figures(self) -> dict[str, Any]:
        """Return the numbers of the line; seconds are null while they are unknown."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        done = min(self.done + self.finished, self.rows)  # `done` is an estimate
        left_s = (self.rows - done) / (self.finished / elapsed_s) if self.finished else None
        return {
            "event": "progress",
            "rows_done": done,
            "rows": self.rows,
            "audio_s": round(self.audio_s, 3),
            "rejects": self.rejects,
            "times_real_time": self.audio_s / elapsed_s,
            "left_s": left_s,
        }

    def line(self) -> str:
        """Return the line: rows, audio hours, rejects, speed relative to real time, and time left."""
        figures = self.figures()
        done, speed = figures["rows_done"], figures["times_real_time"]
        return (
            f"{done:,} of {self.rows:,} rows ({done / max(self.rows, 1):.0%})  {self.audio_s / 3600:.2f} h audio  "
            f"{self.rejects:,} rejects  {speed:.1f}x real time  {_time_left(figures['left_s'])}"
        )


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left"

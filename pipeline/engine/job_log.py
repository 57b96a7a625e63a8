"""Messages of a job on standard error, as text for a person or as one JSON object per line for a log collector.

No message contains a transcript, a row, a key or a query string.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

from pipeline.config import LogFormat
from pipeline.redaction import without_query
from pipeline.shard.commit import Finished

_log = logging.getLogger("pipeline.shards")
_ROUNDED = 3
_WARNING = "warning: "


class JsonLines(io.TextIOBase):
    """Text stream that writes each line as a JSON object: `{"event": "message", "message": ...}`.

    Lines that begin with `warning:` have the event `warning`; empty lines are dropped.

    Args:
        out: stream of the objects.
    """

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._unfinished = threading.local()  # threads may write parts of a line at the same time

    def write(self, text: str) -> int:
        """Write the lines that `text` completes; the rest waits for the end of its line."""
        *lines, self._unfinished.line = (getattr(self._unfinished, "line", "") + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            event = "warning" if line.startswith(_WARNING) else "message"
            self.event({"event": event, "message": line.removeprefix(_WARNING)})
        return len(text)

    def event(self, fields: dict[str, Any]) -> None:
        """Write one object."""
        self._out.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._out.flush()

    def flush(self) -> None:
        """Do nothing: every object is written at once."""


def log_shard(shard: Finished, output: str) -> None:
    """Log one finished shard, at INFO."""
    _log.info("%s", _ShardMessage(shard, output))


class _ShardMessage:
    """The message of one shard, formatted only when a handler writes it."""

    def __init__(self, shard: Finished, output: str) -> None:
        self._shard, self._output = shard, output

    def __str__(self) -> str:
        shard = self._shard
        rejects = ", ".join(f"{reason} {count:,}" for reason, count in Counter(shard.rejects).items())
        return (
            f"shard {shard.plan}-{shard.shard:06d}: {shard.rows:,} rows, {shard.utterances:,} utterances, "
            f"{len(shard.rejects):,} rejects{f' ({rejects})' if rejects else ''}, {shard.audio_s:,.0f} s of audio"
            f"{'' if shard.won else ', committed by another run'}"
        )

    def fields(self) -> dict[str, Any]:
        """Return the counts and seconds of the shard."""
        shard = self._shard
        return {
            "event": "shard",
            "run": shard.plan,
            "shard": shard.shard,
            "output": without_query(self._output),
            "outcome": "committed" if shard.won else "elsewhere",
            "rows": shard.rows,
            "utterances": shard.utterances,
            "rejects": dict(Counter(shard.rejects)),
            "audio_s": round(shard.audio_s, _ROUNDED),
            "stage_s": {stage: round(seconds, _ROUNDED) for stage, seconds in shard.stage_s.items()},
            "figures": {
                stage: {name: round(number, _ROUNDED) for name, number in figures.items() if number}
                for stage, figures in shard.figures.items()
            },
        }


class _Handler(logging.StreamHandler[TextIO]):
    """Handler that hands the fields of shards to a stream of JSON objects, and everything else over as text."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(self.stream, JsonLines) and isinstance(message, _ShardMessage):
            self.stream.event(message.fields())
        else:
            super().emit(record)


def report_warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield warnings about the rows of a published run."""
    if mixed := report.get("rows_mixed_down"):
        yield (
            f"run {report['run_id']} mixed down {mixed:,} rows with two channels that differ, such as the two sides of a call; "
            "--channels split or auto, in a new output, annotates each channel"
        )


@contextmanager
def job_log(log_format: LogFormat) -> Iterator[TextIO]:
    """Open the stream for messages to the user, and log to it.

    It is a copy of standard error, because Ray's output on file descriptor 2 is withheld while the job runs.
    """
    with os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        out = cast(TextIO, JsonLines(terminal)) if log_format == "json" else terminal
        with logging_to(out):
            yield out


@contextmanager
def logging_to(out: TextIO) -> Iterator[None]:
    """Send the pipeline's warnings to `out`, and also a line for each shard unless `out` is a terminal."""
    handler = _Handler(out)
    watched = out.isatty()
    handler.setFormatter(logging.Formatter("\n%(message)s" if watched else "%(message)s"))
    logger = logging.getLogger("pipeline")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if watched else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)

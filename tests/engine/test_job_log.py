"""Messages of a job: a short line per shard for people, one JSON object per line for log collectors."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from pipeline.engine.job_log import JsonLines, job_log, log_shard, logging_to
from pipeline.engine.progress import Progress
from pipeline.shard.commit import Finished

SHARD = Finished(
    "000001", 7, True, 64, 61, ("NOT_FOUND", "NOT_FOUND", "TRUNCATED"), 219.98765,
    {"prepare": 1.23456, "commit": 0.1}, {"recognise": {"batches": 2.0, "halved": 0.0, "model_s": 0.98765}},
)  # fmt: skip
OUTPUT = "s3://bucket/out?X-Amz-Signature=canary"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_shard_is_one_object():
    """Fails if a log collector cannot read the line, if it lacks a count, or if it holds a query string."""
    out = io.StringIO()
    with logging_to(JsonLines(out)):
        log_shard(SHARD, OUTPUT)
        log_shard(SHARD, OUTPUT)
    first, second = out.getvalue().splitlines()
    assert first == second and "canary" not in first
    redacted = (
        "s3://bucket/out?X-Amz-Signature=~9fc1708f"  # an object key may hold `?`; the value of a secret is hashed
    )
    assert json.loads(first) == {
        "event": "shard", "run": "000001", "shard": 7, "output": redacted, "outcome": "committed", "rows": 64,
        "utterances": 61, "rejects": {"NOT_FOUND": 2, "TRUNCATED": 1}, "audio_s": 219.988,
        "stage_s": {"prepare": 1.235, "commit": 0.1}, "figures": {"recognise": {"batches": 2.0, "model_s": 0.988}},
    }  # fmt: skip


def test_a_shard_is_one_short_line_for_people():
    """Fails if a person who pipes the output gets JSON, a long line, or one without the reasons of the rejects."""
    out = io.StringIO()
    with logging_to(out):
        log_shard(SHARD, OUTPUT)
        log_shard(Finished("000001", 8, False, 2, 2, (), 3.0, {}), OUTPUT)
    assert out.getvalue().splitlines() == [
        "shard 000001-000007: 64 rows, 61 utterances, 3 rejects (NOT_FOUND 2, TRUNCATED 1), 220 s of audio",
        "shard 000001-000008: 2 rows, 2 utterances, 0 rejects, 3 s of audio, committed by another run",
    ]


def test_every_message_is_an_object():
    """Fails if a headline, a warning or the progress is plain text in a log of objects, or a warning cannot be told apart."""
    out = io.StringIO()
    lines = JsonLines(out)
    with logging_to(lines):
        print("run 000001: 4 rows", file=lines)
        print("\nthe head does not answer.\nThe job ends", file=lines)
        print("warning: a path", file=lines)
        logging.getLogger("pipeline.engine.watchdog").warning("warning: no %s", "actor")
        Progress(rows=4, done=1, out=lines).show()
    progress = json.loads(out.getvalue().splitlines()[-1])
    assert [json.loads(line) for line in out.getvalue().splitlines()][:-1] == [
        {"event": "message", "message": "run 000001: 4 rows"},
        {"event": "message", "message": "the head does not answer."},
        {"event": "message", "message": "The job ends"},
        {"event": "warning", "message": "a path"},
        {"event": "warning", "message": "no actor"},
    ]
    assert progress.items() >= {"event": "progress", "rows": 4, "rows_done": 1, "left_s": None}.items()


def test_threads_do_not_mix_their_lines():
    """Fails if the parts that two threads write of their lines end up in one object."""
    out = io.StringIO()
    lines = JsonLines(out)
    lines.write("first ")
    other = threading.Thread(target=lambda: lines.write("second\n"))
    other.start()
    other.join()
    lines.write("half\n")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["second", "first half"]


def test_a_terminal_keeps_its_live_line():
    """Fails if shards scroll over the live line, if warnings do not reach a terminal, or if they end in the middle of it."""
    out = Terminal()
    with logging_to(out):
        log_shard(SHARD, OUTPUT)
        logging.getLogger("pipeline.engine.watchdog").warning("warning: no actor")
    assert out.getvalue() == "\nwarning: no actor\n"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_option_decides(log_format, capfd):
    """Fails if the format that was asked for is not the one that is written to standard error."""
    with job_log(log_format) as out:
        print("hello", file=out)
        log_shard(SHARD, OUTPUT)
    first, second = capfd.readouterr().err.splitlines()
    assert (first == "hello") == (log_format == "text")
    assert second.startswith('{"event": "shard"') == (log_format == "json")


def test_nothing_is_left_behind():
    """Fails if a second job in one process logs every line twice."""
    out = io.StringIO()
    with logging_to(out):
        pass
    log_shard(SHARD, OUTPUT)
    assert out.getvalue() == "" and logging.getLogger("pipeline").handlers == []

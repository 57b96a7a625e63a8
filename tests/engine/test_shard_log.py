"""One line of JSON for each shard."""

from __future__ import annotations

import io
import json
import logging

from pipeline.engine.shard_log import log_shard, logging_to
from pipeline.shard.commit import Finished

SHARD = Finished(
    "000001", 7, True, 64, 61, ("NOT_FOUND", "NOT_FOUND", "TRUNCATED"), 219.98765,
    {"prepare": 1.23456, "commit": 0.1}, {"recognise": {"batches": 2.0, "halved": 0.0, "model_s": 0.98765}},
)  # fmt: skip
OUTPUT = "s3://bucket/out?X-Amz-Signature=canary"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_shard_is_one_line_of_json():
    """Fails if a log collector cannot read the line, if it lacks a count, or if it holds a query string."""
    out = io.StringIO()
    with logging_to(out):
        log_shard(SHARD, OUTPUT)
        log_shard(SHARD, OUTPUT)
    first, second = out.getvalue().splitlines()
    assert first == second and "canary" not in first
    shown = "s3://bucket/out?X-Amz-Signature=~9fc1708f"  # an object key may hold `?`; the value of a secret is hashed
    assert json.loads(first) == {
        "event": "shard", "run": "000001", "shard": 7, "output": shown, "outcome": "committed", "rows": 64,
        "utterances": 61, "rejects": {"NOT_FOUND": 2, "TRUNCATED": 1}, "audio_s": 219.988,
        "stage_s": {"prepare": 1.235, "commit": 0.1}, "figures": {"recognise": {"batches": 2.0, "model_s": 0.988}},
    }  # fmt: skip


def test_a_terminal_keeps_its_live_line():
    """Fails if JSON scrolls over the live line, if warnings do not reach a terminal, or if they end in the middle of it."""
    out = Terminal()
    with logging_to(out):
        log_shard(SHARD, OUTPUT)
        logging.getLogger("pipeline.engine.watchdog").warning("warning: no actor")
    assert out.getvalue() == "\nwarning: no actor\n"


def test_nothing_is_left_behind():
    """Fails if a second job in one process logs every line twice."""
    out = io.StringIO()
    with logging_to(out):
        pass
    log_shard(SHARD, OUTPUT)
    assert out.getvalue() == "" and logging.getLogger("pipeline").handlers == []

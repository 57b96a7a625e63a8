"""JSON log lines, one per finished shard: counts and seconds, without transcripts, rows, keys or query strings."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pipeline.shard.commit import Finished
from pipeline.storage.access import without_query

_log = logging.getLogger("pipeline.shards")
_ROUNDED = 3


def log_shard(shard: Finished, output: str) -> None:
    """Write the line of one shard, at INFO."""
    _log.info("%s", _Line(shard, output))


class _Line:
    """A log line that is formatted only when a handler writes it."""

    def __init__(self, shard: Finished, output: str) -> None:
        self._shard, self._output = shard, output

    def __str__(self) -> str:
        shard = self._shard
        said = {
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
        return json.dumps(said, ensure_ascii=False)


@contextmanager
def logging_to(out: TextIO) -> Iterator[None]:
    """Send the pipeline's warnings to `out`, and also a line for each shard unless `out` is a terminal."""
    handler = logging.StreamHandler(out)
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

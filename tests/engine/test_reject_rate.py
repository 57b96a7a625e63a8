"""A run that is going wrong stops: too many rejects of any kind when asked, too many for want of access in any case."""

from __future__ import annotations

import io
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import pipeline.engine.run as driver_module
from pipeline.config import load_config
from pipeline.engine.pools import Resources
from pipeline.engine.run import Driver
from pipeline.errors import JobError
from pipeline.models import roles
from pipeline.shard.commit import Finished
from tests.support.manifests import jsonl
from tests.support.outputs import MODELS
from tests.support.pins import by_role

SHARDS, ROWS = 30, 10


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run a driver whose shards end with the given rejects; returns how many of them it took, and what it said."""
    manifest = jsonl(
        tmp_path / "m.jsonl", *({"id": str(n), "audio": f"/a/{n}", "text": "t"} for n in range(SHARDS * ROWS))
    )

    def played(reasons: tuple[str, ...], max_reject_rate: float | None) -> tuple[int, str]:
        taken = []

        def run_shards(_work, shards, _pools, _config, on_finished):
            for shard in shards:
                taken.append(shard)
                on_finished(Finished(shard.plan, shard.number, True, ROWS, ROWS - len(reasons), reasons, 0.0, {}))

        monkeypatch.setattr(driver_module, "cluster", lambda *_: nullcontext(Resources(2.0, 0.0, 8e9, 1, 2.0)))
        monkeypatch.setattr(driver_module, "run_shards", run_shards)
        monkeypatch.setattr(driver_module, "publish", lambda *_: {})
        monkeypatch.setattr(roles, "choose", lambda *_, **__: by_role({"fusion/en": "m"}))
        pinned = SimpleNamespace(warnings=(), result=lambda: (MODELS, {"audio_embedding": 4}))
        monkeypatch.setattr(driver_module, "Pinning", lambda *_: nullcontext(pinned))
        flags = {"shard_rows": ROWS, "audio_root": "/a", "max_reject_rate": max_reject_rate}
        config = load_config(None, {"manifest": [str(manifest)], "output": str(tmp_path / "out"), **flags})
        try:
            Driver(config, io.StringIO()).run()
        except JobError as stopped:
            return len(taken), str(stopped)
        return len(taken), ""

    return played


@pytest.mark.parametrize(
    ("reasons", "limit"),
    [
        (("NOT_FOUND",) * 9, None),
        (("TRUNCATED",) * 10, None),
        (("NOT_FOUND",) * 2, 0.2),
        (("NOT_FOUND",) * 10, 1.0),
        (("FORBIDDEN",) * 5, None),
        (("FORBIDDEN",) * 10, 1.0),
    ],
)
def test_what_is_within_the_limit_goes_on(play, reasons, limit):
    """Fails if a corpus with many files that are gone, or a share that was allowed, stops a run."""
    assert play(reasons, limit) == (SHARDS, "")


@pytest.mark.parametrize(
    ("reasons", "limit", "said"),
    [
        (("NOT_FOUND",) * 3, 0.2, "30 of 100 rows are rejected, more than --max-reject-rate 0.2 allows"),
        (("TOO_SHORT", "FETCH_FAILED", "TOO_SHORT"), 0.2, "reasons: FETCH_FAILED, TOO_SHORT"),
        (("FORBIDDEN", "FETCH_FAILED") * 3, None, "60 of 100 rows are rejected because access was denied"),
        (("NOT_FOUND",), 0.0, "10 of 100 rows"),
        (("NOT_FOUND",) * 10, None, "100 of 100 audio files are missing. Check that the disk is mounted"),
        (("REFUSED", "NOT_FOUND") * 5, None, "100 of 100 audio files are missing"),
    ],
)
def test_a_run_that_goes_wrong_stops_after_a_hundred_rows(play, reasons, limit, said):
    """Fails if the limit is noticed late, never, or without a word on why."""
    taken, message = play(reasons, limit)
    assert taken == 100 // ROWS
    assert said in message and "Committed shards are kept" in message and "below /a/" in message

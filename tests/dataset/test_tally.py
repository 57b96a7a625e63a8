"""Publishing of plans with many parts: rejected rows in the tables of several shards, and the number of calls."""

from __future__ import annotations

import pytest

from pipeline.dataset.parts import committed_parts
from pipeline.dataset.publish import publish
from pipeline.dataset.tally import rejected_rows
from pipeline.errors import Reason, Reject, Stage
from tests.dataset.test_parts import commit_all, planned
from tests.support.many_nights import CountingStore

SHARDS = 70
"""More than are read at once, so that rejects come from two tables."""


def _reject(number: int) -> Reject:
    return Reject(Reason.NOT_FOUND, f"object {number}", Stage.FETCH)


def test_rejects_of_many_shards_keep_their_rows_and_order(tmp_path):
    """Fails if a reject gets the row of another shard, the order changes, or a part costs more than two calls."""
    records = [
        {"id": f"r{number:03}", "audio": f"/a/{number}.wav", "text": "t", "take": number}
        for number in range(2 * SHARDS)
    ]
    store = CountingStore()
    plan = planned(store, tmp_path, records)
    rejects = {
        shard: tuple((row, _reject(2 * shard + row)) for row in range(1 + shard % 2)) for shard in range(1, SHARDS)
    }
    commit_all(store, plan, rejects)
    parts = committed_parts(store, [plan])[plan.plan]
    store.calls.clear()
    report = publish(store, plan, parts, {"run_id": plan.plan})
    assert store.calls.total() <= 2 * SHARDS, store.calls
    expected = [2 * shard + row for shard, of_shard in rejects.items() for row, _ in of_shard]
    table = store.table("rejects/000001.parquet")
    assert table["recording_id"].to_pylist() == [f"r{number:03}" for number in expected]
    assert table["take"].to_pylist() == expected
    assert table["detail"].to_pylist() == [f"object {number}" for number in expected]
    assert (report["rejected"], report["recordings_annotated"]) == (len(expected), 2 * SHARDS - len(expected))


def test_a_reject_beyond_its_shard_is_refused(tmp_path):
    """Fails if a receipt that rejects a row which its shard does not have takes the first row of the next shard."""
    store = CountingStore()
    plan = planned(store, tmp_path, [{"id": f"r{number}", "audio": "/a/0.wav", "text": "t"} for number in range(4)])
    with pytest.raises(IndexError, match="row 2 of a shard of 2 rows"):
        list(rejected_rows(store, plan, {0: ((2, _reject(0)),), 1: ((0, _reject(1)),)}))

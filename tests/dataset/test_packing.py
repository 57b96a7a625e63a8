"""Early closing of shards: the same shards as ever, at a cost that grows with the rows."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from pipeline.dataset import packing
from pipeline.dataset.packing import ShardSize


def first_come(packer, rows) -> None:
    """Add rows as packers did before: look for the fullest open shard before each one that is closed early."""
    for key, group in packing.groups(rows, packer.group_by):
        packer._add_group(key, group)
    while sum(count for count, _ in packer._fill.values()) > packing._OPEN_ROWS:
        packer._close(max(packer._fill, key=lambda key: packer._fill[key][0]))


class Kept:
    """Shard files that keep the ids of each shard."""

    def __init__(self) -> None:
        self.shards: list[list[str]] = []

    def add(self, rows: pa.Table) -> None:
        self.shards.append(rows["recording_id"].to_pylist())

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(30))
def test_shards_are_closed_early_in_the_order_they_always_were(monkeypatch, seed):
    """Fails if an interrupted corpus that is planned anew falls into other shards than with earlier versions."""
    rng = random.Random(seed)
    monkeypatch.setattr(packing, "_OPEN_ROWS", rng.choice([1, 7, 40]))
    partitions, most = rng.choice([1, 5, 60, 500]), rng.choice([1, 3, 20])
    tables = []
    for part in range(rng.randrange(1, 12)):
        count = rng.randrange(1, 60)
        tables.append(pa.table({
            "recording_id": [f"r{part}-{n}" for n in range(count)],
            "speaker": pa.array([rng.choice([None, str(rng.randrange(partitions))]) for _ in range(count)], pa.string()),
            "duration_s": pa.array([rng.choice([None, 0.0, 3.0, 1000.0]) for _ in range(count)], pa.float64()),
        }))  # fmt: skip
    shards = []
    for add in (packing.Packer.add, first_come):
        packer = packing.Packer(Kept(), ("speaker",), ShardSize(most, 100.0))
        for table in tables:
            add(packer, table)
        packer.finish()
        shards.append(packer.files.shards)
    assert shards[0] == shards[1]


def test_closing_many_shards_early_visits_each_once(monkeypatch):
    """Fails if every open partition is looked at for each shard that is closed: hours beyond 200,000 partitions."""
    monkeypatch.setattr(packing, "_OPEN_ROWS", 1_000)
    visited = []

    class Counted(dict):
        def values(self):
            visited.append(len(self))
            return super().values()

        def __iter__(self):
            visited.append(len(self))
            return super().__iter__()

        def __missing__(self, key):
            self[key] = (0, 0.0)
            return self[key]

    packer = packing.Packer(Kept(), ("speaker",), ShardSize(50, 1e9))
    packer._fill = Counted()
    count = 3_000
    ids = [f"r{n}" for n in range(count)]
    packer.add(pa.table({"recording_id": ids, "speaker": ids, "duration_s": pa.nulls(count, pa.float64())}))
    assert len(packer.files.shards) == 2_000
    assert sum(visited) <= 3 * count

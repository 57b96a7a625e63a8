"""The next recordings are on their way while one is decoded: order, errors and memory are as if they were not."""

from __future__ import annotations

import threading

import pytest

from pipeline import readahead
from pipeline.errors import JobError, Reason, RejectedRow, Stage
from pipeline.readahead import MOST_AHEAD, read_ahead


class Store:
    """Counts what is on its way at once; the second fetch and later ones wait until `together` are."""

    def __init__(self, together: int, size: int = 1000) -> None:
        self.size, self.at_once, self.most, self.asked = size, 0, 0, []
        self.lock, self.barrier = threading.Lock(), threading.Barrier(together) if together > 1 else None

    def fetch(self, item: int) -> bytes:
        with self.lock:
            self.asked.append(item)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if self.barrier and 1 <= item <= self.barrier.parties:
            self.barrier.wait(20)
        with self.lock:
            self.at_once -= 1
        if item == 3:
            raise RejectedRow(Reason.NOT_FOUND, f"no object {item}", Stage.FETCH)
        return bytes([item]) * self.size


def test_many_are_fetched_at_once_and_come_in_order():
    """Fails, by a broken barrier, if fetches wait for each other, or if results or errors come to the wrong row."""
    store = Store(together=MOST_AHEAD)
    found = []
    for content in read_ahead(store.fetch, range(40)):
        try:
            found.append(content()[0])
        except RejectedRow as rejected:
            found.append(rejected.detail)
    assert found == [0, 1, 2, "no object 3", *range(4, 40)]
    assert store.most == MOST_AHEAD
    assert sorted(store.asked) == list(range(40))


def test_large_ones_come_one_by_one(monkeypatch):
    """Fails if sixteen objects of gigabytes are held at once."""
    monkeypatch.setattr(readahead, "_BUDGET_BYTES", 3000)
    store = Store(together=1, size=1200)
    assert [content()[0] for content in read_ahead(store.fetch, [0, 1, 2, 4, 5, 6])] == [0, 1, 2, 4, 5, 6]
    assert store.most <= 2


def test_nothing_is_read_ahead_of_a_store_that_never_answered():
    """Fails if a store that is gone is asked for many rows before anybody has heard of the first."""
    asked = []

    def gone(item: int) -> bytes:
        asked.append(item)
        raise JobError("gone")

    contents = read_ahead(gone, range(30))
    for _ in range(3):
        with pytest.raises(JobError):
            next(contents)()
    contents.close()
    assert len(asked) == 3


def test_who_stops_early_leaves_no_queue():
    """Fails if a shard that is given up goes on fetching all its rows."""
    store = Store(together=1)
    contents = read_ahead(store.fetch, range(10, 210))
    for _ in range(5):
        next(contents)()
    contents.close()
    assert len(store.asked) <= 5 + MOST_AHEAD

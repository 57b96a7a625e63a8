"""The next recordings are on their way while one is decoded: order, errors and memory are as if they were not."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

from pipeline.audio.limits import AudioLimits
from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.shard import recording as recording_module
from pipeline.storage.access import AudioRoots
from pipeline.storage.read_ahead import MOST_AHEAD, read_ahead


class Store:
    """Counts what is on its way at once; the first fetches wait until `together` are."""

    def __init__(self, together: int, size: int = 1000) -> None:
        self.size, self.at_once, self.most, self.asked = size, 0, 0, []
        self.lock, self.barrier = threading.Lock(), threading.Barrier(together) if together > 1 else None

    def fetch(self, item: int) -> bytes:
        with self.lock:
            self.asked.append(item)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if self.barrier and item < self.barrier.parties:
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


def test_large_ones_wait_for_their_turn(tmp_path, monkeypatch):
    """Fails if sixteen recordings of gigabytes are held at once, or a large one is rejected for not being small."""
    files = [tmp_path / f"{number}.wav" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(bytes(1000 if number == 1 else 10))
    work = SimpleNamespace(roots=AudioRoots.parse((str(tmp_path),), []), limits=AudioLimits(max_bytes=2000))
    monkeypatch.setattr(recording_module, "SMALL_BYTES", 100)
    records = [{"audio": str(file), "sha256": None, "md5": None} for file in files]
    contents = [content() for content in read_ahead(partial(recording_module.fetch_small, work), records)]
    assert contents == [bytes(10), None, bytes(10)]


def test_who_stops_early_leaves_no_queue():
    """Fails if a shard that is given up goes on fetching all its rows."""
    store = Store(together=1)
    contents = read_ahead(store.fetch, range(10, 210))
    for _ in range(5):
        next(contents)()
    contents.close()
    assert len(store.asked) <= 5 + MOST_AHEAD

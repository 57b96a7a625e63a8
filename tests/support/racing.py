"""A race of writers for one key of a store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from pipeline.storage.store import Store

WRITERS = 16


def race(store: Store) -> None:
    """Let writers put an object of their own at one key at the same moment; exactly one must win, and its object stay."""
    barrier = threading.Barrier(WRITERS)

    def write(number: int) -> bool:
        barrier.wait()
        return store.put_if_absent("raced", str(number).encode() * 1000)

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(write, range(WRITERS)))
    assert sum(won) == 1
    assert store.read("raced") == str(won.index(True)).encode() * 1000

"""Read-ahead: fetch the next recordings while one is decoded, so that a store's latency is paid once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_AHEAD = 16
SMALL_BYTES = 16 * 2**20
"""Largest object to fetch ahead; `MOST_AHEAD` of them fit into 256 MiB."""


def read_ahead(fetch: Callable[[T], R], items: Sequence[T]) -> Iterator[Callable[[], R]]:
    """Yield, for each item in order, a callable that returns the result of `fetch` or raises its error.

    Threads fetch `MOST_AHEAD` items at once. `fetch` must limit the size of each.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(MOST_AHEAD, thread_name_prefix="fetch")
    try:
        for number in range(len(items)):
            for item in items[number + len(waiting) : number + MOST_AHEAD]:
                waiting.append(pool.submit(fetch, item))
            yield waiting.popleft().result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

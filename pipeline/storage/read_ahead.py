"""Reading ahead: while one recording is decoded, the next are on their way, so that a store's latency is paid once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_AHEAD = 16
SMALL_BYTES = 16 * 2**20
"""What may be fetched ahead: with it all that is on its way fits into 256 MiB."""


def read_ahead(fetch: Callable[[T], R], items: Sequence[T]) -> Iterator[Callable[[], R]]:
    """For each item in turn, a call that returns what `fetch` returned or raises what it raised.

    `MOST_AHEAD` are fetched at once, by threads. How large each may be is for `fetch` to see to.
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

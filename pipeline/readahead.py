"""Reading ahead: while one recording is decoded, the next are on their way, so that a store's latency is paid once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST_AHEAD = 16
_BUDGET_BYTES = 256 * 2**20


def read_ahead(fetch: Callable[[T], bytes], items: Sequence[T]) -> Iterator[Callable[[], bytes]]:
    """For each item in turn, a call that returns its bytes or raises what `fetch` raised.

    As many are fetched at once as should fit into 256 MiB if all are as large as the largest so far, at most `MOST_AHEAD`; the
    first alone. Threads: `fetch` must bear being called from several.
    """
    waiting: deque[Future[bytes]] = deque()
    largest, begun = _BUDGET_BYTES, 0
    pool = ThreadPoolExecutor(MOST_AHEAD, thread_name_prefix="fetch")
    try:
        for _ in items:
            ahead = max(1, min(MOST_AHEAD, _BUDGET_BYTES // largest))
            while begun < len(items) and len(waiting) < ahead:
                waiting.append(pool.submit(fetch, items[begun]))
                begun += 1
            future = waiting.popleft()
            yield future.result
            if future.exception() is None:
                size = max(len(future.result()), 1)
                largest = size if largest == _BUDGET_BYTES else max(largest, size)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

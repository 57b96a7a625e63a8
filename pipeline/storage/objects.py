"""One object of a store: its details, a range of its bytes, and the limit on its size."""

from __future__ import annotations

from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.storage.http_body import GRACE_S, SLOWEST_BYTES_PER_S
from pipeline.storage.hub import hub_size, is_hub, read_hub_range
from pipeline.storage.retry import plain_http_errors


def refuse_large(size: int | None, max_bytes: int, display_uri: str) -> None:
    """Refuse an object of a known size above the limit. Raises: RejectedRow TOO_LARGE."""
    if size is not None and size > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{display_uri} has {size:,} bytes, more than {max_bytes:,}", Stage.FETCH)


def object_info(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return fsspec's details of an object within `GRACE_S`, since headers can be slow too.

    Raises: see `plain_http_errors`.
    """
    if is_hub(filesystem):
        return {"size": hub_size(path)}
    with plain_http_errors():
        if isinstance(filesystem, AsyncFileSystem):
            info: dict[str, Any] = sync(filesystem.loop, filesystem._info, path, timeout=GRACE_S)
        else:
            info = filesystem.info(path)
    return info


def read_range(filesystem: AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    """Read the bytes from `start` to before `end`. Raises: TimeoutError when the transfer is too slow."""
    content: bytes
    if is_hub(filesystem):
        return read_hub_range(path, start, end)
    if isinstance(filesystem, AsyncFileSystem):
        limit_s = GRACE_S + (end - start) / SLOWEST_BYTES_PER_S
        content = sync(filesystem.loop, filesystem._cat_file, path, start=start, end=end, timeout=limit_s)
    else:
        content = filesystem.cat_file(path, start=start, end=end)
    return content

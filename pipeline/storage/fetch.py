"""Read one whole object, or a small text file of the user, with retries and within bounds of size and time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.http_body import GRACE_S, SLOWEST_BYTES_PER_S, HttpBody
from pipeline.storage.hub import is_hub
from pipeline.storage.item_content import read_item
from pipeline.storage.items import display_name, item_of
from pipeline.storage.local_file import open_regular
from pipeline.storage.objects import object_info, read_range, refuse_large
from pipeline.storage.refusals import reject_of
from pipeline.storage.retry import DENIED, TRANSIENT, Redirected, retried

_ONE_GET_BYTES = 50 << 20
_MAX_TEXT_BYTES = 64 << 20
"""Largest config or calibration file."""


def fetch(uri: str, *, max_bytes: int, allow: Callable[[str], None] | None = None) -> bytes:
    """Read one whole object, or one item of a container, whatever size the store reports: at most `max_bytes`.

    5xx responses, resets, stalls and short bodies are retried (`pipeline.storage.retry`); 4xx responses are not. An
    http transfer that is too slow is aborted (`pipeline.storage.http_body`).

    Args:
        allow: called with the real path of the opened local file; raises RejectedRow to refuse it. The target of a path
            may have changed since it was checked.
    Raises: RejectedRow(NOT_FOUND | FORBIDDEN | REFUSED | TOO_LARGE | NOT_ALLOWED | FETCH_FAILED); JobError for invalid
        credentials.
    """
    display_uri, item = display_name(uri), item_of(uri)
    filesystem, path = resolve(uri if item is None else item.container)
    if item is None:
        read = partial(_read_bounded, filesystem, path, max_bytes, display_uri, allow)
    else:
        read = partial(read_item, filesystem, path, item, max_bytes=max_bytes, display_uri=display_uri, allow=allow)
    try:
        return retried(read, what=display_uri)
    except (*TRANSIENT, *DENIED, ValueError) as error:
        raise RejectedRow.of(reject_of(error, filesystem, path, display_uri)) from error


def _read_bounded(
    filesystem: AbstractFileSystem,
    path: str,
    max_bytes: int,
    display_uri: str,
    allow: Callable[[str], None] | None = None,
) -> bytes:
    """Read a whole object in one attempt. Raises: RejectedRow; OSError and similar errors, which are retried."""
    if isinstance(filesystem, LocalFileSystem):
        with open_regular(path, display_uri, allow) as file:
            size: int | None = os.fstat(file.fileno()).st_size
            refuse_large(size, max_bytes, display_uri)
            content = file.read(max_bytes + 1)
    else:
        size = object_info(filesystem, path)["size"]
        refuse_large(size, max_bytes, display_uri)
        content = _transfer(filesystem, path, size, max_bytes)
    if len(content) > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{display_uri} has more than {max_bytes:,} bytes", Stage.FETCH)
    if size is not None and len(content) != size:
        raise OSError(errno.EIO, f"{len(content)} of {size} bytes were received")
    return content


def _transfer(filesystem: AbstractFileSystem, path: str, size: int | None, max_bytes: int) -> bytes:
    """Read the object, or enough of it to show that it is too large. Raises: TimeoutError when it is too slow."""
    content: bytes
    if isinstance(filesystem, HTTPFileSystem):
        with HttpBody(filesystem, path) as body:
            return body.read_at_most(max_bytes + 1)
    if is_hub(filesystem):
        return read_range(filesystem, path, 0, size or 0)
    # one more byte shows that the object has grown; s3fs reads larger objects in parallel
    part = {"start": 0, "end": size + 1} if size and size <= _ONE_GET_BYTES else {}
    if isinstance(filesystem, AsyncFileSystem):
        limit_s = GRACE_S + (size or 0) / SLOWEST_BYTES_PER_S
        content = sync(filesystem.loop, filesystem._cat_file, path, timeout=limit_s, **part)
    else:
        content = filesystem.cat_file(path, **part)
    return content


def read_text(uri: str) -> str:
    """Read a small text file named by the user, on disk or in a store. Raises: ConfigError with the cause."""
    display_uri = without_query(uri)
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, LocalFileSystem):
            return Path(path).read_text(encoding="utf-8")  # also a pipe: `--config <(command)`
        return retried(lambda: _read_bounded(filesystem, path, _MAX_TEXT_BYTES, display_uri), what=display_uri).decode(
            "utf-8"
        )
    except Redirected as error:
        raise ConfigError(f"{display_uri} {error}") from error
    except RejectedRow as error:
        raise ConfigError(f"{display_uri} cannot be read: {error.detail}") from error
    except (*TRANSIENT, *DENIED, JobError, UnicodeDecodeError) as error:
        raise ConfigError(f"{display_uri} cannot be read: {error}") from error

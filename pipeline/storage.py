"""Where bytes live: one way in and out of local disk and object stores, through fsspec.

`fetch` reads one audio object with its own retries. `Store` is the output side; it knows one write, put-if-absent:
`If-None-Match: *` on S3 and its kin, and on disk a hidden temporary, fsync and link(2), which fails if the name is
taken. Nothing here renames or deletes what a reader could see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import aiohttp
import botocore.exceptions
import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, Reason, RejectedRow, Stage
from pipeline.roots import without_query

RETRY_BUDGET_S = 60.0
"""Longest time one object is tried for: pyarrow's client gives up after about 1.3 s of 503s, a brown-out lasts longer."""
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 8.0
_TRANSIENT = (OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError)
PROBE_KEY = "_runs/_probe"
_ROOM_FOR_FOOTER = 64 * 1024


def resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    """Split a URI or local path into its filesystem and the path inside it.

    Credentials and endpoint come from the usual environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
    Raises: ConfigError for a scheme fsspec does not know or whose package is not installed.
    """
    # a redirect would lead past the audio roots
    options = {"allow_redirects": False} if uri[:4].lower() == "http" else {}
    try:
        # a listing remembered from before would hide what another process has committed since
        filesystem, path = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {without_query(uri)!r}: {error}") from error
    return filesystem, path


def fetch(uri: str, *, max_bytes: int) -> bytes:
    """Read one object whole.

    5xx answers, resets and time-outs are tried again with full jitter for `RETRY_BUDGET_S`; 403 and 404 are not.
    Raises: RejectedRow(NOT_FOUND | FORBIDDEN | TOO_LARGE | FETCH_FAILED).
    """
    shown = without_query(uri)
    filesystem, path = resolve(uri)
    deadline = time.monotonic() + RETRY_BUDGET_S
    attempt = 0
    while True:
        attempt += 1
        try:
            return _read_bounded(filesystem, path, max_bytes, shown)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise RejectedRow(Reason.NOT_FOUND, f"no object at {shown}", Stage.FETCH) from error
        except (PermissionError, botocore.exceptions.NoCredentialsError) as error:
            raise RejectedRow(Reason.FORBIDDEN, f"not allowed to read {shown}", Stage.FETCH) from error
        except _TRANSIENT as error:
            backoff = random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempt))
            if time.monotonic() + backoff > deadline:
                detail = f"{shown} failed {attempt} times in {RETRY_BUDGET_S:.0f} s, last with {type(error).__name__}"
                raise RejectedRow(Reason.FETCH_FAILED, detail, Stage.FETCH) from error
            time.sleep(backoff)


def _read_bounded(filesystem: AbstractFileSystem, path: str, max_bytes: int, shown: str) -> bytes:
    info = filesystem.info(path)
    size = info["size"]
    if info["type"] == "other":
        raise RejectedRow(Reason.NOT_ALLOWED, f"{shown} is no regular file", Stage.FETCH)
    if size is not None and size > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{shown} holds {size:,} bytes, more than {max_bytes:,}", Stage.FETCH)
    content: bytes = filesystem.cat_file(path)
    if size is not None and len(content) != size:
        raise OSError(errno.EIO, f"{len(content)} of {size} bytes arrived")
    return content


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing: its key below the store's root, and its size."""

    key: str
    size_bytes: int


class Store(Protocol):
    """The output of a job: a root below which objects appear whole, once, and stay."""

    root: str

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Create `key` with `content`; True if this call did, False if the key was there before (or a lost answer hid
        that this very call created it: compare what is there).
        """

    def read(self, key: str) -> bytes:
        """The whole object. Raises: FileNotFoundError."""

    def open(self, key: str) -> BinaryIO:
        """A seekable file on the object, for readers that want parts of it. Raises: FileNotFoundError."""

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """The last `size_bytes` of the object, or all of it when it is smaller."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object under the folder `prefix`, in no order. A folder that is not there holds none."""


class LocalStore:
    """A `Store` on a local or network file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `Store`. The content is on disk before the name exists, and the name before this returns."""
        final = self._root / key
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        self._sync_folder(final.parent)
        return True

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, key: str) -> bytes:
        """See `Store`."""
        return (self._root / key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        """See `Store`."""
        return (self._root / key).open("rb")

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """See `Store`."""
        with (self._root / key).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size_bytes))
            return file.read()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See `Store`. Hidden files are temporaries and are left out."""
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                if not name.startswith("."):
                    path = Path(folder) / name
                    yield StoredObject(path.relative_to(self._root).as_posix(), path.stat().st_size)


class ObjectStore:
    """A `Store` in a bucket, through fsspec. Needs conditional writes; `open_store` makes sure of them."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._filesystem, self._path = resolve(self.root)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `Store`. One PUT with `If-None-Match: *` (a conditional multipart completion for large contents)."""
        path = f"{self._path}/{key}"
        try:
            self._filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # SeaweedFS through s3fs answers an existing key with EINVAL (412), AWS with FileExistsError
            if self._filesystem.exists(path):
                return False
            raise error
        return True

    def read(self, key: str) -> bytes:
        """See `Store`."""
        content: bytes = self._filesystem.cat_file(f"{self._path}/{key}")
        return content

    def open(self, key: str) -> BinaryIO:
        """See `Store`."""
        file: BinaryIO = self._filesystem.open(f"{self._path}/{key}", "rb", block_size=2**20)
        return file

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """See `Store`."""
        content: bytes = self._filesystem.cat_file(f"{self._path}/{key}", start=-size_bytes)
        return content

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See `Store`."""
        found: dict[str, dict[str, Any]] = self._filesystem.find(f"{self._path}/{prefix}", detail=True)
        for path, info in found.items():
            yield StoredObject(path[len(self._path) + 1 :], info["size"])


def open_store(uri: str) -> Store:
    """The store at `uri`; nothing is written."""
    filesystem, path = resolve(uri)
    return LocalStore(Path(path)) if isinstance(filesystem, LocalFileSystem) else ObjectStore(uri)


def require_conditional_writes(store: Store) -> None:
    """Refuse a store on which two attempts at one shard could both win.

    Leaves one empty object at `_runs/_probe`. Raises: ConfigError naming what the store did.
    """
    try:
        store.put_if_absent(PROBE_KEY, b"")
        second_won = store.put_if_absent(PROBE_KEY, b"")
    except (*_TRANSIENT, NotImplementedError) as error:
        raise ConfigError(f"cannot write to the output {without_query(store.root)!r}: {error}") from error
    if second_won:
        raise ConfigError(
            f"the output {without_query(store.root)!r} overwrote an object it was asked to create only if absent; "
            "without conditional writes two attempts could both commit a shard. Use AWS S3, MinIO, SeaweedFS, "
            "Google Cloud Storage or a local disk"
        )

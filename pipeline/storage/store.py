"""Access to local disk and object stores through fsspec.

`fetch` reads one audio object with its own retries. `Store` is the output side. Its only write is put-if-absent:
`If-None-Match: *` on S3 and compatible stores; on disk a hidden temporary file, fsync and link(2), which fails if the
name exists.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.redaction import without_query
from pipeline.storage.http_body import GRACE_S, SLOWEST_BYTES_PER_S, HttpBody, http_options
from pipeline.storage.local_file import open_regular
from pipeline.storage.refusals import look_closer, reject_of
from pipeline.storage.retry import (
    CONNECT_TIMEOUT_S,
    DENIED,
    READ_TIMEOUT_S,
    TRANSIENT,
    Redirected,
    plain_http_errors,
    principal,
    retried,
)

T = TypeVar("T")

_LIBRARY_TRIES = 3
"""Attempts by s3fs itself, for code that reads a file in pieces; five of 20 s each would spend minutes on a stall."""
_ROOM_FOR_FOOTER = 64 * 1024
_ONE_GET_BYTES = 50 << 20
_MAX_TEXT_BYTES = 64 << 20
"""Largest config or calibration file."""


def resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    """Split a URI or local path into its file system and the path inside it.

    Credentials and endpoint come from the usual environment variables (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).

    Raises: ConfigError for a scheme that fsspec does not know or whose package is not installed.
    """
    scheme = uri.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        options = http_options(READ_TIMEOUT_S)
    elif scheme in ("s3", "s3a"):
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options = {"config_kwargs": {**timeouts, "retries": {"max_attempts": 0}}}
    try:
        # a cached listing would hide commits by other processes
        filesystem, path = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {without_query(uri)!r}: {error}") from error
    if scheme in ("s3", "s3a"):
        filesystem.retries = _LIBRARY_TRIES
    return filesystem, path


def fetch(uri: str, *, max_bytes: int, allow: Callable[[str], None] | None = None) -> bytes:
    """Read one whole object, holding at most `max_bytes` in memory, whatever size the store reports.

    5xx responses, resets, stalls and short bodies are retried (`pipeline.storage.retry`); 4xx responses are not. An
    http transfer that is too slow is aborted (`pipeline.storage.http_body`).

    Args:
        allow: called with the real path of the opened local file; raises RejectedRow to refuse it. The target of a path
            may have changed since it was checked.
    Raises: RejectedRow(NOT_FOUND | FORBIDDEN | REFUSED | TOO_LARGE | NOT_ALLOWED | FETCH_FAILED); JobError for invalid
        credentials.
    """
    shown = without_query(uri)
    filesystem, path = resolve(uri)
    try:
        return retried(lambda: _read_bounded(filesystem, path, max_bytes, shown, allow), what=shown)
    except (*TRANSIENT, *DENIED, ValueError) as error:
        raise RejectedRow.of(reject_of(error, filesystem, path, shown)) from error


def _read_bounded(
    filesystem: AbstractFileSystem, path: str, max_bytes: int, shown: str, allow: Callable[[str], None] | None = None
) -> bytes:
    """Read a whole object in one attempt. Raises: RejectedRow; OSError and similar errors, which are retried."""
    if isinstance(filesystem, LocalFileSystem):
        with open_regular(path, shown, allow) as file:
            size: int | None = os.fstat(file.fileno()).st_size
            refuse_large(size, max_bytes, shown)
            content = file.read(max_bytes + 1)
    else:
        size = object_info(filesystem, path)["size"]
        refuse_large(size, max_bytes, shown)
        content = _transfer(filesystem, path, size, max_bytes)
    if len(content) > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{shown} has more than {max_bytes:,} bytes", Stage.FETCH)
    if size is not None and len(content) != size:
        raise OSError(errno.EIO, f"{len(content)} of {size} bytes were received")
    return content


def refuse_large(size: int | None, max_bytes: int, shown: str) -> None:
    """Refuse an object of a known size above the limit. Raises: RejectedRow TOO_LARGE."""
    if size is not None and size > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{shown} has {size:,} bytes, more than {max_bytes:,}", Stage.FETCH)


def object_info(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return fsspec's details of an object within `GRACE_S`, since headers can be slow too.

    Raises: see `plain_http_errors`.
    """
    with plain_http_errors():
        if isinstance(filesystem, AsyncFileSystem):
            found: dict[str, Any] = sync(filesystem.loop, filesystem._info, path, timeout=GRACE_S)
        else:
            found = filesystem.info(path)
    return found


def _transfer(filesystem: AbstractFileSystem, path: str, size: int | None, max_bytes: int) -> bytes:
    """Read the object, or enough of it to show that it is too large. Raises: TimeoutError when it is too slow."""
    content: bytes
    if isinstance(filesystem, HTTPFileSystem):
        with HttpBody(filesystem, path) as body:
            return body.read_at_most(max_bytes + 1)
    # one more byte shows that the object has grown; s3fs reads larger objects in parallel
    part = {"start": 0, "end": size + 1} if size and size <= _ONE_GET_BYTES else {}
    if isinstance(filesystem, AsyncFileSystem):
        limit_s = GRACE_S + (size or 0) / SLOWEST_BYTES_PER_S
        content = sync(filesystem.loop, filesystem._cat_file, path, timeout=limit_s, **part)
    else:
        content = filesystem.cat_file(path, **part)
    return content


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object in a listing: its key below the store's root and its size."""

    key: str
    size_bytes: int


class Store(Protocol):
    """The output of a job: a root below which objects are created whole and once, and are never changed."""

    root: str

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Create `key` with `content`, and return whether this call created it.

        False can also mean that this call created the object but the response was lost; compare the stored content.
        """

    def read(self, key: str) -> bytes:
        """Return the whole object. Raises: FileNotFoundError."""

    def open(self, key: str) -> BinaryIO:
        """Open the object as a seekable file, for reading parts of it. Raises: FileNotFoundError."""

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """Return the last `size_bytes` of the object, or all of it if it is smaller."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object under the folder `prefix`, in no order; none if the folder is missing."""


class LocalStore:
    """A `Store` on a local or network file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `Store`. The content is on disk before the name exists, and the name is on disk before this returns."""
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
        except OSError as error:
            error.filename = error.filename or str(final)  # the error of a full disk names no file
            raise
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
        """See `Store`. Hidden files are temporary files and are omitted."""
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                if not name.startswith("."):
                    path = Path(folder) / name
                    yield StoredObject(path.relative_to(self._root).as_posix(), path.stat().st_size)


def _asked(filesystem: AbstractFileSystem, path: str, call: Callable[[], T], *, what: str) -> T:
    """Return the result of `call`, with retries. Raises: JobError naming the principal when access is denied."""
    try:
        return retried(call, what=what)
    except DENIED as error:
        look_closer(filesystem, path, what)
        raise JobError(f"{what}: {principal()} is not allowed to ({error})") from error


class _RangedFile(io.RawIOBase):
    """An object as a seekable file. Each read is one ranged GET with our own retries; nothing is read ahead."""

    def __init__(self, filesystem: AbstractFileSystem, path: str, *, what: str) -> None:
        self._filesystem, self._path, self._what = filesystem, path, what
        self._size: int = _asked(filesystem, path, lambda: filesystem.info(path)["size"], what=what)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the signature of io.RawIOBase
        start, end = self._at, min(self._at + len(buffer), self._size)
        if end <= start:
            return 0
        content = _asked(
            self._filesystem,
            self._path,
            lambda: self._filesystem.cat_file(self._path, start=start, end=end),
            what=self._what,
        )
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class ObjectStore:
    """A `Store` in a bucket, through fsspec. Needs conditional writes; see `require_conditional_writes`."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._filesystem, self._path = resolve(self.root)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `Store`. One PUT with `If-None-Match: *` (a conditional multipart completion for large contents)."""
        path = f"{self._path}/{key}"
        try:
            self._asked("writing", key, lambda: self._filesystem.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            # for an existing key, SeaweedFS through s3fs raises EINVAL (412), AWS raises FileExistsError
            if self._asked("looking for", key, lambda: self._filesystem.exists(path)):
                return False
            raise error
        return True

    def _asked(self, doing: str, key: str, call: Callable[[], T]) -> T:
        return _asked(self._filesystem, f"{self._path}/{key}", call, what=f"{doing} {self.root}/{key}")

    def read(self, key: str) -> bytes:
        """See `Store`."""
        content: bytes = self._asked("reading", key, lambda: self._filesystem.cat_file(f"{self._path}/{key}"))
        return content

    def open(self, key: str) -> BinaryIO:
        """See `Store`."""
        file = _RangedFile(self._filesystem, f"{self._path}/{key}", what=f"reading {self.root}/{key}")
        return cast(BinaryIO, file)

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """See `Store`."""
        path = f"{self._path}/{key}"
        content: bytes = self._asked("reading", key, lambda: self._filesystem.cat_file(path, start=-size_bytes))
        return content

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See `Store`."""
        path = f"{self._path}/{prefix}"
        found: dict[str, dict[str, Any]] = self._asked(
            "listing", prefix, lambda: self._filesystem.find(path, detail=True)
        )
        for name, info in found.items():
            yield StoredObject(name[len(self._path) + 1 :], info["size"])


def open_store(uri: str) -> Store:
    """Return the store at `uri` without writing anything."""
    filesystem, path = resolve(uri)
    return LocalStore(Path(path)) if isinstance(filesystem, LocalFileSystem) else ObjectStore(uri)


def open_folder_of(uri: str) -> tuple[Store, str]:
    """Return the store that contains a file, and the file's key in it, without reading or writing anything."""
    folder, slash, name = uri.rpartition("/")
    return open_store(folder or slash or "."), name


def read_text(uri: str) -> str:
    """Read a small text file named by the user, on disk or in a store. Raises: ConfigError with the cause."""
    shown = without_query(uri)
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, LocalFileSystem):
            return Path(path).read_text(encoding="utf-8")  # also a pipe: `--config <(command)`
        return retried(lambda: _read_bounded(filesystem, path, _MAX_TEXT_BYTES, shown), what=shown).decode("utf-8")
    except Redirected as error:
        raise ConfigError(f"{shown} {error}") from error
    except RejectedRow as error:
        raise ConfigError(f"{shown} cannot be read: {error.detail}") from error
    except (*TRANSIENT, *DENIED, JobError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} cannot be read: {error}") from error


def require_conditional_writes(store: Store, probe: str) -> None:
    """Refuse a store on which two attempts at one shard could both commit.

    Leaves one empty object at `probe`. Raises: ConfigError describing the store's behaviour.
    """
    try:
        store.put_if_absent(probe, b"")
        second_won = store.put_if_absent(probe, b"")
    except (*TRANSIENT, JobError, NotImplementedError) as error:
        raise ConfigError(f"cannot write to the output {without_query(store.root)!r}: {error}") from error
    if second_won:
        raise ConfigError(
            f"the output {without_query(store.root)!r} overwrote an object it was asked to create only if absent; "
            "without conditional writes two attempts could both commit a shard. Use AWS S3, MinIO, SeaweedFS, "
            "Google Cloud Storage or a local disk"
        )

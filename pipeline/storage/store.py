"""Where bytes live: one way in and out of local disk and object stores, through fsspec.

`fetch` reads one audio object with its own retries. `Store` is the output side; it knows one write, put-if-absent:
`If-None-Match: *` on S3 and its kin, and on disk a hidden temporary, fsync and link(2), which fails if the name is taken.
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
from pipeline.storage.refusals import look_closer, rejected
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
"""Of s3fs itself, for what reads a file bit by bit; five of 20 s each would let one stalled object take minutes."""
_ROOM_FOR_FOOTER = 64 * 1024
_ONE_GET_BYTES = 50 << 20
_MAX_TEXT_BYTES = 64 << 20
"""A longer config or calibration file is none."""


def resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    """Split a URI or local path into its filesystem and the path inside it.

    Credentials and endpoint come from the usual environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
    Raises: ConfigError for a scheme fsspec does not know or whose package is not installed.
    """
    scheme = uri.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        options = http_options(READ_TIMEOUT_S)
    elif scheme in ("s3", "s3a"):
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options = {"config_kwargs": {**timeouts, "retries": {"max_attempts": 0}}}
    try:
        # a listing remembered from before would hide what another process has committed since
        filesystem, path = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {without_query(uri)!r}: {error}") from error
    if scheme in ("s3", "s3a"):
        filesystem.retries = _LIBRARY_TRIES
    return filesystem, path


def fetch(uri: str, *, max_bytes: int, allow: Callable[[str], None] | None = None) -> bytes:
    """Read one object whole: at most `max_bytes` of it into memory, whatever its size is said to be.

    5xx answers, resets, stalls and short bodies are tried again (`pipeline.storage.retry`); 4xx answers are not. A transfer over
    http is broken off when it falls behind (`pipeline.storage.http_body`).

    Args:
        allow: is given the real path of the local file that was opened, and raises RejectedRow to refuse it. A path that
            was checked before may lead elsewhere by now.
    Raises: RejectedRow(NOT_FOUND | FORBIDDEN | REFUSED | TOO_LARGE | NOT_ALLOWED | FETCH_FAILED); JobError for credentials
        that do not count.
    """
    shown = without_query(uri)
    filesystem, path = resolve(uri)
    try:
        return retried(lambda: _read_bounded(filesystem, path, max_bytes, shown, allow), what=shown)
    except (*TRANSIENT, *DENIED, ValueError) as error:
        raise rejected(error, filesystem, path, shown) from error


def _read_bounded(
    filesystem: AbstractFileSystem, path: str, max_bytes: int, shown: str, allow: Callable[[str], None] | None = None
) -> bytes:
    """One try at a whole object. Raises: RejectedRow; OSError and its kin, to be tried again."""
    if isinstance(filesystem, LocalFileSystem):
        with open_regular(path, shown, allow) as file:
            size: int | None = os.fstat(file.fileno()).st_size
            _refuse_large(size, max_bytes, shown)
            content = file.read(max_bytes + 1)
    else:
        size = object_info(filesystem, path)["size"]
        _refuse_large(size, max_bytes, shown)
        content = _transfer(filesystem, path, size, max_bytes)
    if len(content) > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{shown} has more than {max_bytes:,} bytes", Stage.FETCH)
    if size is not None and len(content) != size:
        raise OSError(errno.EIO, f"{len(content)} of {size} bytes arrived")
    return content


def _refuse_large(size: int | None, max_bytes: int, shown: str) -> None:
    if size is not None and size > max_bytes:
        raise RejectedRow(Reason.TOO_LARGE, f"{shown} has {size:,} bytes, more than {max_bytes:,}", Stage.FETCH)


def object_info(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    """What the store says about an object, within `GRACE_S`: headers can drip too. Raises: what `plain_http_errors` does."""
    with plain_http_errors():
        if isinstance(filesystem, AsyncFileSystem):
            found: dict[str, Any] = sync(filesystem.loop, filesystem._info, path, timeout=GRACE_S)
        else:
            found = filesystem.info(path)
    return found


def _transfer(filesystem: AbstractFileSystem, path: str, size: int | None, max_bytes: int) -> bytes:
    """The object, or of a larger one as much as shows that. Raises: TimeoutError when it drips."""
    content: bytes
    if isinstance(filesystem, HTTPFileSystem):
        with HttpBody(filesystem, path) as body:
            return body.read_at_most(max_bytes + 1)
    # one byte more shows that it has grown; larger ones s3fs reads in parallel
    part = {"start": 0, "end": size + 1} if size and size <= _ONE_GET_BYTES else {}
    if isinstance(filesystem, AsyncFileSystem):
        limit_s = GRACE_S + (size or 0) / SLOWEST_BYTES_PER_S
        content = sync(filesystem.loop, filesystem._cat_file, path, timeout=limit_s, **part)
    else:
        content = filesystem.cat_file(path, **part)
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
        except OSError as error:
            error.filename = error.filename or str(final)  # a write that finds no room does not say where
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
        """See `Store`. Hidden files are temporaries and are left out."""
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                if not name.startswith("."):
                    path = Path(folder) / name
                    yield StoredObject(path.relative_to(self._root).as_posix(), path.stat().st_size)


def _asked(filesystem: AbstractFileSystem, path: str, call: Callable[[], T], *, what: str) -> T:
    """What the store answers, after retries. Raises: JobError naming who is not allowed to do this."""
    try:
        return retried(call, what=what)
    except DENIED as error:
        look_closer(filesystem, path, what)
        raise JobError(f"{what}: {principal()} is not allowed to ({error})") from error


class _RangedFile(io.RawIOBase):
    """An object as a seekable file: each read is one ranged GET with retries of ours, and nothing is read ahead."""

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

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io.RawIOBase has it
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
    """A `Store` in a bucket, through fsspec. Needs conditional writes; `open_store` makes sure of them."""

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
            # SeaweedFS through s3fs answers an existing key with EINVAL (412), AWS with FileExistsError
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
    """The store at `uri`; nothing is written."""
    filesystem, path = resolve(uri)
    return LocalStore(Path(path)) if isinstance(filesystem, LocalFileSystem) else ObjectStore(uri)


def open_folder_of(uri: str) -> tuple[Store, str]:
    """The store that a file of somebody's lies in, and its key there; nothing is read or written."""
    folder, slash, name = uri.rpartition("/")
    return open_store(folder or slash or "."), name


def read_text(uri: str) -> str:
    """A small file that a user named, on disk or in a store, whole. Raises: ConfigError saying why it cannot be read."""
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
    """Refuse a store on which two attempts at one shard could both win.

    Leaves one empty object at `probe`. Raises: ConfigError naming what the store did.
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

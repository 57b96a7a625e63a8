"""The store of an output, on a local disk or in a bucket.

Its only write is put-if-absent: `If-None-Match: *` on S3, compatible stores and Azure, `ifGenerationMatch=0` on Google Cloud; on
disk a hidden temporary file, fsync and link(2), which fails if the name exists.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.redaction import without_query
from pipeline.storage.clouds import has_suffix_ranges, upload_options
from pipeline.storage.filesystem import resolve
from pipeline.storage.pages import objects_below
from pipeline.storage.refusals import look_closer
from pipeline.storage.retry import DENIED, TRANSIENT, principal, retried

T = TypeVar("T")

_ROOM_FOR_FOOTER = 64 * 1024


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


def sync_folder(folder: Path) -> None:
    """Wait until the names in a local folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        sync_folder(final.parent)
        return True

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


def _call(filesystem: AbstractFileSystem, path: str, call: Callable[[], T], *, what: str) -> T:
    """Return the result of `call`, with retries. Raises: JobError naming the principal when access is denied."""
    try:
        return retried(call, what=what)
    except DENIED as error:
        look_closer(filesystem, path, what)
        who = principal() if hasattr(filesystem, "call_s3") else "the job's account"
        raise JobError(f"{what}: {who} is not allowed to ({error})") from error


class _RangedFile(io.RawIOBase):
    """An object as a seekable file. Each read is one ranged GET with our own retries; nothing is read ahead."""

    def __init__(self, filesystem: AbstractFileSystem, path: str, *, what: str) -> None:
        self._filesystem, self._path, self._what = filesystem, path, what
        self._size: int = _call(filesystem, path, lambda: filesystem.info(path)["size"], what=what)
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
        content = _call(
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
        """See `Store`. One PUT with `If-None-Match: *` (a conditional completion for large contents); on Google Cloud one POST
        with `ifGenerationMatch=0`.
        """
        path, more = f"{self._path}/{key}", upload_options(self._filesystem, content)
        try:
            self._retried("writing", key, lambda: self._filesystem.pipe_file(path, content, mode="create", **more))
        except FileExistsError:
            return False
        except OSError as error:
            # for an existing key, SeaweedFS through s3fs raises EINVAL (412), AWS raises FileExistsError
            if self._retried("looking for", key, lambda: self._filesystem.exists(path)):
                return False
            raise error
        return True

    def _retried(self, doing: str, key: str, call: Callable[[], T]) -> T:
        return _call(self._filesystem, f"{self._path}/{key}", call, what=f"{doing} {self.root}/{key}")

    def read(self, key: str) -> bytes:
        """See `Store`."""
        content: bytes = self._retried("reading", key, lambda: self._filesystem.cat_file(f"{self._path}/{key}"))
        return content

    def open(self, key: str) -> BinaryIO:
        """See `Store`."""
        file = _RangedFile(self._filesystem, f"{self._path}/{key}", what=f"reading {self.root}/{key}")
        return cast(BinaryIO, file)

    def read_tail(self, key: str, size_bytes: int = _ROOM_FOR_FOOTER) -> bytes:
        """See `Store`."""
        if not has_suffix_ranges(self._filesystem):
            with self.open(key) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size_bytes))
                return file.read()
        path = f"{self._path}/{key}"
        content: bytes = self._retried("reading", key, lambda: self._filesystem.cat_file(path, start=-size_bytes))
        return content

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See `Store`."""
        request = partial(self._retried, "listing", prefix)
        for found in objects_below(self._filesystem, f"{self._path}/{prefix}", request):
            yield StoredObject(found["name"][len(self._path) + 1 :], found["size"])


def open_store(uri: str) -> Store:
    """Return the store at `uri` without writing anything. Raises: ConfigError when a file of this name is in the way."""
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, LocalFileSystem):
        return ObjectStore(uri)
    folder = Path(path)
    if in_the_way := next((each for each in (folder, *folder.parents) if each.is_file()), None):
        raise ConfigError(f"{path}: {in_the_way} is a file; an output is a folder, so choose another name")
    return LocalStore(folder)


def open_folder_of(uri: str) -> tuple[Store, str]:
    """Return the store that contains a file, and the file's key in it, without reading or writing anything."""
    folder, slash, name = uri.rpartition("/")
    return open_store(folder or slash or "."), name


def require_conditional_writes(store: Store, probe: str) -> None:
    """Refuse a store on which two attempts at one shard could both commit, or that lists objects under other names.

    Leaves one empty object at `probe`. Raises: ConfigError describing the store's behaviour.
    """
    try:
        store.put_if_absent(probe, b"")
        second_won = store.put_if_absent(probe, b"")
    except (*TRANSIENT, JobError, NotImplementedError) as error:
        raise ConfigError(f"cannot write to the output {without_query(store.root)!r}: {error}") from error
    if second_won:
        raise ConfigError(
            f"the output {without_query(store.root)!r} overwrote an object that was to be created only if absent; "
            "without conditional writes two attempts could both commit a shard. Use AWS S3, MinIO, SeaweedFS, "
            "Google Cloud Storage, Azure Blob Storage or a local disk"
        )
    if _renames(store, probe):
        raise ConfigError(
            f"the output {without_query(store.root)!r} lists its objects under other names than they were written with; "
            "give an output location without empty folder names (//)"
        )


def _renames(store: Store, key: str) -> bool:
    """Return whether a store lists the existing object `key` under another name: SeaweedFS stores `d//e` as `d/e`."""
    if "//" not in store.root.partition("://")[2]:
        return False
    return all(file.key != key for file in store.list(key.rpartition("/")[0]))

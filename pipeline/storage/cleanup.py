"""Inspection and deletion of everything in an output: hidden files, file ages and unfinished uploads.

`Store` deliberately has neither ages nor deletion, since few jobs need them. This module serves the audit, which reads
everything, `prune` and `erase`, which delete, and `--texts`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.pages import objects_below
from pipeline.storage.retry import TRANSIENT, retried
from pipeline.storage.store import LocalStore, Store, sync_folder

STORE_ERRORS = (*TRANSIENT, JobError)
"""Errors of a store that is missing, does not respond, denies access or rejects the credentials."""
_LONGEST_CAUSE = 200


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file or object, hidden or not: its key below the root, size and modification time (seconds since 1970)."""

    key: str
    size_bytes: int
    modified_s: float


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted; its parts use storage but are not listed.

    Attributes:
        size_bytes: size of the parts sent so far; None if the server does not report it.
    """

    key: str
    upload_id: str
    started_s: float
    size_bytes: int | None


@contextmanager
def reaching(store: Store, what: str = "") -> Iterator[None]:
    """Convert store errors raised in the block to one sentence. Raises: ConfigError; FileNotFoundError unchanged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except STORE_ERRORS as error:
        place = f"{without_query(store.root)}{what and '/'}{what}"
        raise ConfigError(f"cannot reach {place}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return an error as the end of a sentence: its type (omitted for a JobError) and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    name = "" if isinstance(error, JobError) else f"{type(error).__name__}: "
    return f"{name}{lines[0][:_LONGEST_CAUSE]}"


def walk(store: Store, prefix: str = "") -> Iterator[StoredFile]:
    """Yield every file under the folder `prefix`, including hidden files, in no order; none if the folder is missing.

    Files deleted during the walk are omitted. Raises: ConfigError when a folder cannot be listed.
    """
    with reaching(store, prefix), suppress(FileNotFoundError):
        yield from (
            _walk_disk(Path(store.root), prefix) if isinstance(store, LocalStore) else _walk_bucket(store, prefix)
        )


def _walk_disk(root: Path, prefix: str) -> Iterator[StoredFile]:
    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # by default, os.walk treats an unreadable folder as empty
            raise error

    for folder, _, names in os.walk(root / prefix, onerror=stop):
        for name in names:
            path = Path(folder) / name
            with suppress(FileNotFoundError):  # a temporary file that was renamed to a part
                status = path.stat()
                yield StoredFile(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _walk_bucket(store: Store, prefix: str) -> Iterator[StoredFile]:
    filesystem, root = resolve(store.root)
    try:
        place = f"{root}/{prefix}".rstrip("/")
        for info in objects_below(filesystem, place, partial(retried, what=f"listing {place}")):
            path = info["name"]
            if info["type"] == "file" and not path.endswith("/") and path.startswith(f"{root}/"):
                yield StoredFile(path[len(root) + 1 :], info["size"] or 0, modified_s(info))
    except ValueError as error:  # s3fs: the URI names no bucket
        raise ConfigError(f"cannot list {without_query(store.root)!r}: {error}") from error


def modified_s(info: Mapping[str, Any]) -> float:
    """Return the modification time from the details of s3fs, gcsfs, adlfs or the local file system."""
    for name in ("LastModified", "mtime", "last_modified", "updated"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    raise ConfigError(f"this store does not say when {info['name']} was written")


def uploads(store: Store) -> Iterator[Upload]:
    """Yield active and abandoned multipart uploads below the root; none on stores without multipart uploads.

    Costs one request per thousand uploads, and one for the size of each.
    """
    if isinstance(store, LocalStore):
        return
    filesystem, root = resolve(store.root)
    if not hasattr(filesystem, "call_s3"):
        return
    bucket, prefix, _ = filesystem.split_path(f"{root}/")
    after: dict[str, str] = {}
    while True:
        ask = partial(filesystem.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        with reaching(store):
            page = retried(ask, what=f"listing uploads to {root}")
        for upload in page.get("Uploads", ()):
            # some servers ignore the prefix
            if upload["Key"].startswith(prefix):
                key = upload["Key"][len(prefix) :]
                size_bytes = _sent_bytes(filesystem, bucket, upload)
                yield Upload(key, upload["UploadId"], upload["Initiated"].timestamp(), size_bytes)
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _sent_bytes(filesystem: AbstractFileSystem, bucket: str, upload: dict[str, Any]) -> int | None:
    """Return the total size of the first thousand parts (at least 5 GB if there are more), or None if unknown."""
    ask = partial(filesystem.call_s3, "list_parts", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    try:
        page = retried(ask, what=f"listing parts of {upload['Key']}")
    except STORE_ERRORS:
        return None
    return sum(int(part["Size"]) for part in page.get("Parts", ()))


def remove(store: Store, key: str) -> None:
    """Delete one file permanently; a missing file is not an error. Raises: ConfigError when the store refuses."""
    with reaching(store, key), suppress(FileNotFoundError):
        if isinstance(store, LocalStore):
            (Path(store.root) / key).unlink()
        else:
            filesystem, root = resolve(store.root)
            retried(lambda: filesystem.rm_file(f"{root}/{key}"), what=f"deleting {root}/{key}")


def replace(store: Store, key: str, content: bytes) -> None:
    """Replace or create a file: a reader sees the old or the new content. Raises: ConfigError when the store refuses."""
    with reaching(store, key):
        if not isinstance(store, LocalStore):
            filesystem, root = resolve(store.root)
            retried(lambda: filesystem.pipe_file(f"{root}/{key}", content), what=f"replacing {root}/{key}")
            return
        final = Path(store.root) / key
        temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(final.parent)


def abort(store: Store, upload: Upload) -> None:
    """Abort a multipart upload and free its parts; a missing upload is not an error. Raises: ConfigError."""
    filesystem, root = resolve(store.root)
    bucket, key, _ = filesystem.split_path(f"{root}/{upload.key}")
    ask = partial(filesystem.call_s3, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.upload_id)
    with reaching(store, upload.key), suppress(FileNotFoundError):
        retried(ask, what=f"aborting an upload to {root}/{upload.key}")

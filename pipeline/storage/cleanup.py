"""What lies in an output besides what its listing shows: hidden files, ages, unfinished uploads; and deletion.

`Store` knows neither ages nor deletion on purpose, since nothing a job does needs them. This is for the audit, which looks
at everything, and for `prune`, the one place that deletes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.storage.access import without_query
from pipeline.storage.retry import TRANSIENT, retried
from pipeline.storage.store import LocalStore, Store, resolve

STORE_ERRORS = (*TRANSIENT, JobError)
"""What a store raises when it is not there, does not answer, does not allow, or does not know us."""
_LONGEST_CAUSE = 200


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file or object, hidden or not: its key below the root, its size, and when it was written (seconds since 1970)."""

    key: str
    size_bytes: int
    modified_s: float


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted; its parts cost storage and no listing shows it.

    Attributes:
        size_bytes: of the parts sent so far; None where the server does not say.
    """

    key: str
    upload_id: str
    started_s: float
    size_bytes: int | None


@contextmanager
def reaching(store: Store, what: str = "") -> Iterator[None]:
    """Turn what the store raises inside into one sentence. Raises: ConfigError; FileNotFoundError as it came."""
    try:
        yield
    except FileNotFoundError:
        raise
    except STORE_ERRORS as error:
        place = f"{without_query(store.root)}{what and '/'}{what}"
        raise ConfigError(f"cannot reach {place}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """An error as the end of a sentence: its type, unless it is a sentence of ours, and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    name = "" if isinstance(error, JobError) else f"{type(error).__name__}: "
    return f"{name}{lines[0][:_LONGEST_CAUSE]}"


def walk(store: Store, prefix: str = "") -> Iterator[StoredFile]:
    """Every file under the folder `prefix`, hidden ones too, in no order; a folder that is not there holds none.

    Files that vanish meanwhile are left out. Raises: ConfigError when something there cannot be listed.
    """
    with reaching(store, prefix), suppress(FileNotFoundError):
        yield from (
            _walk_disk(Path(store.root), prefix) if isinstance(store, LocalStore) else _walk_bucket(store, prefix)
        )


def _walk_disk(root: Path, prefix: str) -> Iterator[StoredFile]:
    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else a folder that cannot be read would look empty
            raise error

    for folder, _, names in os.walk(root / prefix, onerror=stop):
        for name in names:
            path = Path(folder) / name
            with suppress(FileNotFoundError):  # a temporary that became a part
                status = path.stat()
                yield StoredFile(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _walk_bucket(store: Store, prefix: str) -> Iterator[StoredFile]:
    filesystem, root = resolve(store.root)
    try:
        place = f"{root}/{prefix}".rstrip("/")
        found: dict[str, dict[str, Any]] = retried(lambda: filesystem.find(place, detail=True), what=f"listing {place}")
    except ValueError as error:  # s3fs: no bucket is named
        raise ConfigError(f"cannot list {without_query(store.root)!r}: {error}") from error
    for path, info in found.items():
        # consoles of object stores make empty objects named like folders
        if info["type"] == "file" and not path.endswith("/") and path.startswith(f"{root}/"):
            yield StoredFile(path[len(root) + 1 :], info["size"] or 0, modified_s(info))


def modified_s(info: Mapping[str, Any]) -> float:
    """When an object was written, under the names that s3fs, gcsfs, adlfs and the local file system give it."""
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
    """Multipart uploads under way or abandoned below the root; none on stores that know no such thing.

    Costs one request a thousand uploads, and one for the size of each.
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
    """Of the first thousand parts, which is 5 GB at least."""
    ask = partial(filesystem.call_s3, "list_parts", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    try:
        page = retried(ask, what=f"listing parts of {upload['Key']}")
    except STORE_ERRORS:
        return None
    return sum(int(part["Size"]) for part in page.get("Parts", ()))


def remove(store: Store, key: str) -> None:
    """Delete one file for good. One that is gone already is no error. Raises: ConfigError when the store refuses."""
    with reaching(store, key), suppress(FileNotFoundError):
        if isinstance(store, LocalStore):
            (Path(store.root) / key).unlink()
        else:
            filesystem, root = resolve(store.root)
            retried(lambda: filesystem.rm_file(f"{root}/{key}"), what=f"deleting {root}/{key}")


def abort(store: Store, upload: Upload) -> None:
    """Give up a multipart upload and free its parts. One that is gone already is no error. Raises: ConfigError."""
    filesystem, root = resolve(store.root)
    bucket, key, _ = filesystem.split_path(f"{root}/{upload.key}")
    ask = partial(filesystem.call_s3, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.upload_id)
    with reaching(store, upload.key), suppress(FileNotFoundError):
        retried(ask, what=f"aborting an upload to {root}/{upload.key}")

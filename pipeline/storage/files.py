"""Files that a command writes where its user says: new ones, or with leave in place of old ones."""

from __future__ import annotations

import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.storage.access import without_query
from pipeline.storage.retry import ABSENT, DENIED, TRANSIENT, principal, retried
from pipeline.storage.store import resolve


def require_absent(uri: str, *, overwrite: bool) -> None:
    """Say before any work that a file is in the way. Raises: ConfigError."""
    filesystem, path = resolve(uri)
    shown = without_query(uri)
    try:
        if filesystem.isdir(path):
            raise ConfigError(f"{shown} is a folder; name a file")
        if not overwrite and retried(lambda: filesystem.exists(path), what=f"looking for {shown}"):
            raise ConfigError(f"{shown} is there already; name another, or say --overwrite")
    except DENIED:
        raise ConfigError(f"{shown}: {principal()} may not look there") from None


def write_file(uri: str, content: bytes) -> None:
    """Write a file whole, in place of one that is there; a reader never sees half of it.

    Raises: JobError when it cannot be written.
    """
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, LocalFileSystem):
            final = Path(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
            try:
                temporary.write_bytes(content)
                temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            retried(lambda: filesystem.pipe_file(path, content), what=f"writing {without_query(uri)}")
    except (*DENIED, *ABSENT, *TRANSIENT) as error:
        raise JobError(f"{without_query(uri)} cannot be written: {error}") from error

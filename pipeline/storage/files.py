"""Output files at a path chosen by the user, created or, with `overwrite`, replaced."""

from __future__ import annotations

import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.retry import ABSENT, DENIED, TRANSIENT, principal, retried


def require_absent(uri: str, *, overwrite: bool) -> None:
    """Check, before any work, that a file may be written. Raises: ConfigError when it exists or is a folder."""
    filesystem, path = resolve(uri)
    display_uri = without_query(uri)
    try:
        if filesystem.isdir(path):
            raise ConfigError(f"{display_uri} is a folder; name a file")
        if not overwrite and retried(lambda: filesystem.exists(path), what=f"looking for {display_uri}"):
            raise ConfigError(f"{display_uri} already exists; choose another name or pass --overwrite")
    except DENIED:
        raise ConfigError(f"{display_uri}: {principal()} may not list this folder") from None


def write_file(uri: str, content: bytes) -> None:
    """Write a whole file, replacing an existing one; readers never see a partial file.

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

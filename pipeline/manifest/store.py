"""Store access for manifests: errors translated to ours, and a check that the file does not change while read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import botocore.exceptions
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.storage.hub import hub_errors
from pipeline.storage.objects import object_info
from pipeline.storage.retry import Redirected, retried


@contextmanager
def store_errors(display_uri: str) -> Iterator[None]:
    """Convert errors of stores to our own.

    Raises: ConfigError for missing or forbidden manifests; JobError for store failures that may be temporary.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"manifest {display_uri} does not exist") from None
    except aiohttp.ClientConnectorError:
        raise ConfigError(f"manifest {display_uri}: its server cannot be reached") from None
    except Redirected as error:
        raise ConfigError(f"manifest {display_uri} {error}") from None
    except PermissionError:
        raise ConfigError(f"manifest {display_uri} cannot be read with the current credentials") from None
    except IsADirectoryError:
        raise ConfigError(f"manifest {display_uri} is a folder") from None
    except aiohttp.ClientResponseError as error:
        raise ConfigError(f"manifest {display_uri}: the server returned status {error.status}") from None
    except (OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError, *hub_errors()) as error:
        raise JobError(f"manifest {display_uri} could not be read: {str(error) or type(error).__name__}") from None


@contextmanager
def unchanged(filesystem: AbstractFileSystem, path: str, display_uri: str) -> Iterator[None]:
    """Refuse a file that changes while it is read, since the content may mix two versions.

    Raises: JobError, which also replaces the error of a file that looks damaged for this reason.
    """
    with store_errors(display_uri):
        before = _state(filesystem, path)
    try:
        yield
    except (ConfigError, JobError):
        _require_state(filesystem, path, display_uri, before)
        raise
    _require_state(filesystem, path, display_uri, before)


def _require_state(filesystem: AbstractFileSystem, path: str, display_uri: str, before: dict[str, str]) -> None:
    with store_errors(display_uri):
        try:
            after = retried(lambda: _state(filesystem, path), what=f"manifest {display_uri}")
        except FileNotFoundError:
            after = {}
    if after != before:
        changed = [name for name in before if after.get(name) != before[name]]
        raise JobError(
            f"manifest {display_uri} changed while it was read (its {' and '.join(changed)}); nothing of it is planned. "
            "Run the same command again once it is complete"
        )


def _state(filesystem: AbstractFileSystem, path: str) -> dict[str, str]:
    """Return values that differ if the file's content changes: the store's version mark, or the modification time."""
    if isinstance(filesystem, LocalFileSystem):
        status = Path(path).stat()
        return {
            "inode": f"{status.st_dev} {status.st_ino}",
            "size": str(status.st_size),
            "modification time": str(status.st_mtime_ns),
        }
    info = object_info(filesystem, path)
    marks = {name: str(info[name]) for name in ("ETag", "etag", "generation", "VersionId") if info.get(name)}
    times = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
    marks = marks or {name: str(info[name]) for name in times if info.get(name)}
    return {**marks, "size": str(info.get("size"))}

"""Google Cloud Storage and Azure Blob Storage: settings of gcsfs and adlfs, and their errors as the errors of other stores."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem

GCS, AZURE = ("gs", "gcs"), ("az", "abfs", "abfss")
_UNAUTHORIZED, _FORBIDDEN, _ABSENT = 401, 403, 404
_CREDENTIAL_CODES = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
"""Azure's codes, of responses with status 403 too, for an invalid signature or an expired token."""


class CloudError(OSError):
    """An error response of a store.

    Attributes:
        status: HTTP status; None if there was no response.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(errno.EIO, message)
        self.status = status

    def __reduce__(self) -> tuple[type[CloudError], tuple[int | None, str]]:
        """Support pickling between processes."""
        return CloudError, (self.status, str(self.strerror))


class BadCredentialsError(PermissionError):
    """Credentials that the store does not accept for any object, or none at all."""


def client_options(scheme: str, connect_timeout_s: float, read_timeout_s: float) -> dict[str, Any]:
    """Return the options of the file system of a scheme; none for other stores than these two."""
    if scheme in AZURE:
        return {"connection_timeout": int(connect_timeout_s), "read_timeout": int(read_timeout_s)}
    if scheme in GCS:
        import aiohttp

        # the file system for zonal buckets asks over gRPC for the kind of each bucket, and needs further permissions
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        return {"requests_timeout": aiohttp.ClientTimeout(sock_connect=connect_timeout_s, sock_read=read_timeout_s)}
    return {}


def upload_options(filesystem: AbstractFileSystem, content: bytes) -> dict[str, Any]:
    """Return the options of `pipe_file` for an upload by one conditional request."""
    # a resumable upload of gcsfs states the condition when it begins; the emulator does not check it at the end
    return {"chunksize": len(content) + 1} if _is(filesystem, GCS) else {}


def has_suffix_ranges(filesystem: AbstractFileSystem) -> bool:
    """Return whether the last bytes of an object can be read without its size."""
    return not _is(filesystem, AZURE)


def _is(filesystem: AbstractFileSystem, schemes: tuple[str, ...]) -> bool:
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return not set(protocols).isdisjoint(schemes)


@contextmanager
def plain_client_errors() -> Iterator[None]:
    """Raise OSErrors for the errors of gcsfs and azure-core, which have base classes of their own.

    Raises: FileNotFoundError for 404, BadCredentialsError for 401, PermissionError for 403, else CloudError.
    """
    try:
        yield
    except _client_errors() as error:
        raise _plain(error) from error
    except (OSError, ValueError) as error:
        # gcsfs raises these without a status
        if type(error) is OSError and str(error).startswith("Forbidden: "):
            raise PermissionError(errno.EACCES, str(error)) from error
        if type(error) is ValueError and str(error).startswith("Bad Request: "):
            raise CloudError(400, str(error)) from error
        raise


def _client_errors() -> tuple[type[Exception], ...]:
    """Return the base classes of the errors of those clients that are in use."""
    named = {
        "azure.core.exceptions": "AzureError",
        "gcsfs.retry": "HttpError",
        "google.auth.exceptions": "GoogleAuthError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in named.items() if module in sys.modules)


def _plain(error: Exception) -> OSError:
    named = str(getattr(error, "status_code", None) or getattr(error, "code", None))
    status = int(named) if named.isdigit() else None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    module = type(error).__module__
    is_login = module.startswith("google.auth") or type(error).__name__ == "CredentialUnavailableError"
    if is_login or status == _UNAUTHORIZED or str(getattr(error, "error_code", "")) in _CREDENTIAL_CODES:
        return BadCredentialsError(errno.EACCES, lines[0])
    if status == _FORBIDDEN:
        return PermissionError(errno.EACCES, lines[0])
    if status == _ABSENT:
        return FileNotFoundError(errno.ENOENT, lines[0])
    return CloudError(status, lines[0])

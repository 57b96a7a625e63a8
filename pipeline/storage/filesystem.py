"""The file system of a URI, through fsspec."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.clouds import client_options
from pipeline.storage.http_body import http_options
from pipeline.storage.retry import CONNECT_TIMEOUT_S, READ_TIMEOUT_S

_LIBRARY_TRIES = 3
"""Attempts by s3fs itself, for code that reads a file in pieces; five of 20 s each would spend minutes on a stall."""


def resolve(uri: str) -> tuple[AbstractFileSystem, str]:
    """Split a URI or local path into its file system and the path inside it.

    Credentials and endpoint come from the usual environment variables (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
    `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, ...).

    Raises: ConfigError for a scheme that fsspec does not know or whose package is not installed.
    """
    scheme = uri.partition("://")[0].lower()
    options: dict[str, Any] = client_options(scheme, CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
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

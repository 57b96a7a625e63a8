"""Translation of store errors to the reject of the row that requested the object."""

from __future__ import annotations

import re

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import Reason, Reject, Stage
from pipeline.storage.clouds import plain_client_errors
from pipeline.storage.retry import (
    ABSENT,
    DENIED,
    READ_TIMEOUT_S,
    TRANSIENT,
    GaveUp,
    Redirected,
    error_code,
    is_credential_code,
    is_refusal,
    refuse_credentials,
)

_BAD_REQUEST = 400
_ERROR_BODY_BYTES = 4096
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_SHOWN_CHARACTERS = 300
"""Longest name in a message: a name that is too long for its store is also too long for a table."""


def reject_of(error: Exception, filesystem: AbstractFileSystem, path: str, display_uri: str) -> Reject:
    """Return the reject of the row for a store error. Raises: JobError when the credentials are at fault."""
    if isinstance(error, ABSENT):
        return Reject(Reason.NOT_FOUND, f"no object at {display_uri}", Stage.FETCH)
    if isinstance(error, Redirected):
        return Reject(Reason.NOT_ALLOWED, f"{display_uri} {error}", Stage.FETCH)
    if isinstance(error, DENIED):
        look_closer(filesystem, path, display_uri)
        return Reject(Reason.FORBIDDEN, f"not allowed to read {display_uri}", Stage.FETCH)
    if isinstance(error, GaveUp):
        return Reject(Reason.FETCH_FAILED, error.sentence, Stage.FETCH, attempts=error.attempts)
    if error_code(error) == "400":  # S3 reports no more than this for a HEAD request
        error = look_closer(filesystem, path, display_uri) or error
    status = getattr(error, "status", None)
    if status == _BAD_REQUEST and (code := _code_in_body(filesystem, path)) and is_credential_code(code):
        # a pre-signed URL: Google returns this when it has expired, S3 when its session has expired
        return Reject(Reason.FORBIDDEN, f"not allowed to read {display_uri} ({code})", Stage.FETCH)
    why = f"HTTP {status}" if status else type(error).__name__
    if isinstance(error, OSError) and error.errno and error.strerror:
        why = error.strerror
    reason = Reason.REFUSED if is_refusal(error) else Reason.FETCH_FAILED
    return Reject(reason, f"{display_uri[:_SHOWN_CHARACTERS]} failed with {why}", Stage.FETCH)


def look_closer(filesystem: AbstractFileSystem, path: str, display_uri: str) -> Exception | None:
    """Repeat a refused request as a GET, whose response gives a reason, unlike that of a HEAD.

    Returns: the error of the GET, or None.
    Raises: JobError when the credentials are at fault.
    """
    if isinstance(filesystem, LocalFileSystem):
        return None
    try:
        with plain_client_errors():
            filesystem.cat_file(path, start=0, end=1)
    except (*DENIED, *TRANSIENT) as error:
        refuse_credentials(error, display_uri)
        return error
    return None


def _code_in_body(filesystem: AbstractFileSystem, path: str) -> str | None:
    """Return the S3 error code in the body of a refused HTTP GET, or None."""
    if not isinstance(filesystem, HTTPFileSystem):
        return None

    async def ask() -> bytes:
        session = await filesystem.set_session()
        body = b""
        async with session.get(filesystem.encode_url(path), **filesystem.kwargs) as answer:
            while len(body) < _ERROR_BODY_BYTES and (more := await answer.content.read(_ERROR_BODY_BYTES)):
                body += more
        return body

    try:
        code = _ERROR_CODE.search(sync(filesystem.loop, ask, timeout=READ_TIMEOUT_S))
    except TRANSIENT:
        return None
    return code[1].decode() if code else None

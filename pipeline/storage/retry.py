"""Retries of store requests that fail temporarily, and classification of final errors.

5xx responses, resets, stalls and short bodies are retried within one time budget, with full jitter (Brooker, AWS
Architecture Blog 2015). The client libraries are configured not to retry: five of their attempts within each of ours
would spend minutes on one stalled object. Credentials that are no longer valid stop the job, which can then be resumed
with valid ones; otherwise every remaining row would become a reject.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import botocore.exceptions

from pipeline.errors import JobError
from pipeline.redaction import without_query
from pipeline.storage.clouds import BadCredentialsError, CloudError, plain_client_errors

T = TypeVar("T")

BUDGET_S = 60.0
"""Longest time to retry one call. pyarrow's client gives up after about 1.3 s of 503s; a brown-out lasts longer."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 20.0
"""Seconds without a connection or without data after which a request is retried."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 8.0
_counting, _again = threading.Lock(), [0]  # shared by the threads that fetch ahead

TRANSIENT = (OSError, TimeoutError, aiohttp.ClientError, botocore.exceptions.BotoCoreError)
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
DENIED = (PermissionError, botocore.exceptions.NoCredentialsError)
_FINAL = (*ABSENT, FileExistsError)
_LONGEST_TARGET = 500
_REFUSED_ERRNO = {errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EOVERFLOW, errno.ENXIO, errno.ENODEV}
"""File system errors about one name or file: name too long, cycle of links, invalid bytes in the name, a device."""
_FINAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EFBIG, *_REFUSED_ERRNO}
"""Errors that waiting does not fix, such as a full or read-only disk."""
_FINAL_CODES = {"PreconditionFailed", "412", "NotImplemented", "InvalidRange", "416", "InvalidBucketName", "301", "400"}
_HTTP_ABSENT, _HTTP_DENIED, _HTTP_LATER = (404, 410), (401, 403, 407), (408, 425, 429)
_CREDENTIAL_CODES = {
    *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"),
}
"""S3 error codes about the requester's credentials, not about the requested object."""
_REFUSED_CODES = {"KeyTooLongError", "InvalidURI", "InvalidBucketName", "InvalidObjectName", "XMinioInvalidObjectName"}
"""S3 error codes about the name of one object."""


class Redirected(OSError):
    """A redirect from an http server. It is not followed, since its target may be outside the audio roots."""

    def __init__(self, status: int, target: str) -> None:
        self.status, self.target = status, without_query(target)[:_LONGEST_TARGET]
        where = f" to {self.target}" if self.target else ""
        super().__init__(
            f"answers {status}, a redirect{where}. Redirects are not followed; use the address that it leads to"
        )

    def __reduce__(self) -> tuple[type[Redirected], tuple[int, str]]:
        """Support pickling between processes."""
        return Redirected, (self.status, self.target)


class GaveUp(OSError):
    """A call that still failed at the end of its budget.

    Attributes:
        sentence: the call, the number of attempts, the budget and the last error.
        attempts: number of attempts.
    """

    def __init__(self, sentence: str, attempts: int) -> None:
        super().__init__(errno.EIO, sentence)
        self.sentence, self.attempts = sentence, attempts

    def __reduce__(self) -> tuple[type[GaveUp], tuple[str, int]]:
        """Support pickling between processes."""
        return GaveUp, (self.sentence, self.attempts)


def retried(call: Callable[[], T], *, what: str, budget_s: float | None = None) -> T:
    """Return the result of `call`, retrying temporary errors.

    Args:
        what: names the call in messages; without query strings and secrets.
        budget_s: time from the first attempt to the start of the last; `BUDGET_S` by default.
    Raises: GaveUp at the end of the budget; JobError for invalid credentials; final errors at once: missing, not
        allowed, already exists, disk full.
    """
    budget_s = BUDGET_S if budget_s is None else budget_s
    deadline = time.monotonic() + budget_s
    attempts = 0
    while True:
        attempts += 1
        try:
            with plain_client_errors():
                return call()
        except DENIED as error:
            refuse_credentials(error, what)
            raise
        except TRANSIENT as error:
            refuse_credentials(error, what)
            if is_final(error):
                raise
            backoff = random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempts))
            if time.monotonic() + backoff > deadline:
                sentence = f"{what} failed {attempts} times in {budget_s:.0f} s, last with {_named(error)}"
                raise GaveUp(sentence, attempts) from error
            with _counting:
                _again[0] += 1
            time.sleep(backoff)


def tried_again() -> int:
    """Return the number of attempts in this process that were retries."""
    return _again[0]


def is_final(error: BaseException) -> bool:
    """Return whether a retry cannot help."""
    if isinstance(error, (*_FINAL, Redirected)) or error_code(error) in _FINAL_CODES | _REFUSED_CODES:
        return True
    if isinstance(error, aiohttp.ClientResponseError | CloudError):
        return error.status is not None and 400 <= error.status < 500 and error.status not in _HTTP_LATER
    return isinstance(error, aiohttp.InvalidURL) or (isinstance(error, OSError) and error.errno in _FINAL_ERRNO)


def is_refusal(error: BaseException) -> bool:
    """Return whether the store refuses one object for any requester at any time: by its name, or with an HTTP 4xx.

    Errors of access (401, 403, 407), absence (404, 410) and timing (408, 425, 429) are not refusals.
    """
    if (code := error_code(error)) is not None:
        return code in _REFUSED_CODES
    if isinstance(error, aiohttp.ClientResponseError | CloudError):
        others = (*_HTTP_ABSENT, *_HTTP_DENIED, *_HTTP_LATER)
        return error.status is not None and 400 <= error.status < 500 and error.status not in others
    return isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _REFUSED_ERRNO)


def is_credential_code(code: str) -> bool:
    """Return whether an S3 error code means that the credentials, or the signature of a URL, are no longer valid."""
    return code in _CREDENTIAL_CODES


@contextmanager
def plain_http_errors() -> Iterator[None]:
    """Raise the actual HTTP error; fsspec raises FileNotFoundError for any failure to determine a size.

    Raises: FileNotFoundError for 404 and 410, PermissionError for 401 and 403, Redirected, else the client's own error.
    """
    try:
        yield
    except (FileNotFoundError, aiohttp.ClientResponseError) as error:
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        status = getattr(cause, "status", None)
        if status in _HTTP_ABSENT:
            raise FileNotFoundError(errno.ENOENT, f"HTTP {status}") from cause
        if status in _HTTP_DENIED:
            raise PermissionError(errno.EACCES, f"HTTP {status}") from cause
        if isinstance(cause, aiohttp.ClientError | TimeoutError | Redirected):
            raise cause from None
        raise


def refuse_credentials(error: BaseException, what: str) -> None:
    """Raise JobError when the store reports invalid credentials or a wrong clock."""
    if isinstance(error, BadCredentialsError):
        raise JobError(
            f"{what}: the store does not accept the credentials, or there are none ({error.strerror}); renew them and start the "
            "same command again"
        ) from error
    code = error_code(error)
    if code in _CREDENTIAL_CODES:
        hint = (
            "set this machine's clock"
            if code == "RequestTimeTooSkewed"
            else "renew them and start the same command again"
        )
        raise JobError(
            f"{what}: the store does not accept the credentials of {principal()} ({code}); {hint}"
        ) from error
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        raise JobError(f"{what}: there are no credentials; set AWS_ACCESS_KEY_ID and its secret, or a role") from error


def error_code(error: BaseException) -> str | None:
    """Return the S3 error code of an exception of s3fs, which keeps it in the cause, or None."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        seen = seen.__cause__
    return None


def principal() -> str:
    """Return the requester for messages: the end of the access key id and its origin, and nothing of the secret."""
    from botocore.session import get_session

    credentials = get_session().get_credentials()
    return f"access key …{credentials.access_key[-4:]} (from {credentials.method})" if credentials else "nobody"


def _named(error: BaseException) -> str:
    code = error_code(error)
    return f"{type(error).__name__} {code}" if code else type(error).__name__

"""Files of repositories on the Hugging Face hub, read by range: `hf://datasets/ID@COMMIT/path`.

`huggingface_hub` has a file system, which lists a folder to open one file of it, in every thread again; it is used for
listings alone. Token and endpoint come from its usual settings (HF_TOKEN, HF_ENDPOINT).
"""

from __future__ import annotations

import errno
import re
import sys
import time
from typing import Any
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError
from pipeline.storage.http_body import GRACE_S, SLOWEST_BYTES_PER_S

COMMIT = re.compile(r"[0-9a-f]{40}")
_URI = re.compile(
    r"(?:hf://)?(?P<kind>datasets/|spaces/|models/)?(?P<id>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
_ABSENT, _DENIED = (404, 410), (401, 403)
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


def is_hub(filesystem: AbstractFileSystem) -> bool:
    """Return whether a file system is that of the hub."""
    return bool(filesystem.protocol == "hf")


def hub_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of the hub's HTTP client; none if it is not loaded, and so did not raise."""
    if "huggingface_hub" not in sys.modules:
        return ()
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__


def pinned(uri: str) -> str:
    """Return a URI of the hub with its revision replaced by the commit that it names now; other URIs are unchanged.

    Costs one request, none if the revision is a commit.
    Raises: ConfigError for an unknown repository or revision, without access, and without a connection.
    """
    match = _URI.fullmatch(uri) if uri.startswith("hf://") and not uri.startswith("hf://buckets/") else None
    if match is None or COMMIT.fullmatch(match["revision"] or ""):
        return uri
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    revision = None if match["revision"] is None else unquote(match["revision"])
    kind = (match["kind"] or "models/").removesuffix("s/")
    try:
        commit = HfApi().repo_info(match["id"], revision=revision, repo_type=kind, timeout=GRACE_S).sha
    except (GatedRepoError, RepositoryNotFoundError) as error:
        form = "; the URI of a data set begins with hf://datasets/ORG/NAME" if kind == "model" else ""
        raise ConfigError(
            f"{uri}: the hub has no such {kind}, or HF_TOKEN gives no access to it (the terms of some must be accepted){form}"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{uri}: the {kind} has no such revision") from error
    except HFValidationError as error:
        raise ConfigError(f"{uri} names no repository: {error}") from error
    except hub_errors() as error:
        raise ConfigError(f"{uri}: the hub did not answer ({type(error).__name__}: {str(error)[:200]})") from error
    rest = "" if match["path"] is None else f"/{match['path']}"
    return f"hf://{match['kind'] or ''}{match['id']}@{commit}{rest}"


def hub_size(path: str) -> int:
    """Return the size of a file in bytes. Raises: as `read_hub_range`."""
    content, total = _get(path, 0, 1)
    return total if total is not None else len(content)


def read_hub_range(path: str, start: int, end: int) -> bytes:
    """Read the bytes from `start` to before `end`, or to the end of the file, by one request.

    Raises: FileNotFoundError, PermissionError; TimeoutError when the transfer is too slow; OSError for other errors, which
        may be temporary.
    """
    return _get(path, start, end)[0] if end > start else b""


def _get(path: str, start: int, end: int) -> tuple[bytes, int | None]:
    """Return the bytes of a range, and the size of the file; None if the answer does not state it, as for an empty file."""
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + GRACE_S + (end - start) / SLOWEST_BYTES_PER_S
    content = bytearray()
    try:
        with get_session().stream("GET", _url(path), headers=headers, follow_redirects=True) as answer:
            _raise_for(answer.status_code, path)
            total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status_code == 416:
                return b"", None
            if start and total is None:
                raise OSError(errno.EIO, "the hub sent all of a file in response to a request for a part of it")
            for piece in answer.iter_bytes():
                content += piece
                if len(content) >= end - start:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the hub sends less than {SLOWEST_BYTES_PER_S // 1024} KiB/s")
    except hub_errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {str(error)[:200]}") from error
    size = int(total[1]) if total else None
    if size is not None and len(content) < min(end, size) - start:
        raise OSError(errno.EIO, f"{len(content)} of {min(end, size) - start} bytes were received")
    return bytes(content[: end - start]), size


def _raise_for(status: int, path: str) -> None:
    if status in _ABSENT:
        raise FileNotFoundError(errno.ENOENT, f"HTTP {status}", path)
    if status in _DENIED:
        raise PermissionError(errno.EACCES, f"HTTP {status}", path)
    if status >= 400 and status != 416:
        raise OSError(errno.EIO, f"HTTP {status}")


def _url(path: str) -> str:
    from huggingface_hub import constants

    parts: Any = _URI.fullmatch(path)
    if parts is None or not parts["path"]:
        raise FileNotFoundError(errno.ENOENT, "no file of a repository", path)
    kind = "" if parts["kind"] in (None, "models/") else parts["kind"]
    revision = quote(unquote(parts["revision"] or "main"), safe="")
    return f"{constants.ENDPOINT}/{kind}{parts['id']}/resolve/{revision}/{quote(parts['path'])}"

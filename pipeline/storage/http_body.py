"""HTTP response bodies, read in bounded memory and bounded time.

fsspec's own client reads a body of any length into memory, waits for hours on a server that sends an occasional byte,
and returns the page of a redirect as the content. Here the reader limits the size, a transfer that is too slow is
aborted, and a redirect is a separate error, since its target may be outside the audio roots.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import yarl
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from pipeline.storage.retry import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Redirected, plain_http_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SLOWEST_BYTES_PER_S = 256 * 1024
"""Lowest sustained rate of a transfer; see `GRACE_S`."""
GRACE_S = 60.0
"""Seconds a transfer may fall behind `SLOWEST_BYTES_PER_S`, at its start or later, before it is aborted."""
_PARTIAL = 206
_RANGE = re.compile(r"bytes 0-(\d+)/(\d+)")
_PIECE_BYTES = 1 << 20


async def _refuse_redirect(response: aiohttp.ClientResponse) -> None:
    """Raise Redirected when the response is a redirect."""
    if 300 <= response.status < 400:
        response.close()
        target = response.headers.get("Location", "")
        with contextlib.suppress(ValueError):  # an invalid target is reported unchanged
            target = str(response.url.join(yarl.URL(target))) if target else ""
        raise Redirected(response.status, target)


def http_options(read_timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
    """Return options for fsspec's HTTP file system that make every redirect an error, neither followed nor read."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
    return {"allow_redirects": False, "client_kwargs": {"timeout": timeout, "raise_for_status": _refuse_redirect}}


def _is_whole(headers: Mapping[str, str]) -> bool:
    """Return whether a partial response contains the whole object, according to its headers."""
    bounds = _RANGE.fullmatch(headers.get("Content-Range", "bytes 0-0/1"))
    return bounds is not None and int(bounds[1]) + 1 == int(bounds[2])


class HttpBody(io.RawIOBase):
    """The body of one GET request as a file that is read from start to end.

    Bytes are decompressed if the server compresses although the request forbids it. At most the requested number of
    bytes is held in memory.

    Raises, while opening and reading: FileNotFoundError, PermissionError, Redirected or another aiohttp.ClientError;
        TimeoutError when the transfer is too slow.
    """

    def __init__(self, filesystem: HTTPFileSystem, url: str) -> None:
        super().__init__()
        self._filesystem, self._url = filesystem, url
        self._credit_s = GRACE_S
        self._at = 0
        self._response: aiohttp.ClientResponse = self._timed(self._get)

    def readable(self) -> bool:  # noqa: D102 - documented by io.RawIOBase, like the next two
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401, D102
        content: bytes = self._timed(self._next, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def read_at_most(self, max_bytes: int) -> bytes:
        """Read to the end, but no more than `max_bytes`."""
        content = bytearray()
        while len(content) < max_bytes and (more := self._timed(self._next, max_bytes - len(content))):
            content += more
        return bytes(content)

    def close(self) -> None:
        """Close the connection without reading the rest of the body."""
        if not self.closed and hasattr(self, "_response"):
            self._filesystem.loop.call_soon_threadsafe(self._response.close)
        super().close()

    def _timed(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - the result of any call
        """Await a call within the time credit, which waiting spends and received bytes earn back."""
        started = time.monotonic()
        try:
            with plain_http_errors():
                result = sync(self._filesystem.loop, self._within, self._credit_s, call, *arguments)
        except TimeoutError:
            raise TimeoutError(f"the server stalls, or sends less than {SLOWEST_BYTES_PER_S // 1024} KiB/s") from None
        earned_s = len(result) / SLOWEST_BYTES_PER_S if isinstance(result, bytes) else 0.0
        self._credit_s = min(GRACE_S, self._credit_s - (time.monotonic() - started) + earned_s)
        return result

    @staticmethod
    async def _within(limit_s: float, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - as above
        async with asyncio.timeout(max(0.0, limit_s)):
            return await call(*arguments)

    async def _get(self) -> aiohttp.ClientResponse:
        session = await self._filesystem.set_session()
        response: aiohttp.ClientResponse = await session.get(
            self._filesystem.encode_url(self._url), headers={"Accept-Encoding": "identity"}, allow_redirects=False
        )
        response.raise_for_status()
        if response.status == _PARTIAL and not _is_whole(response.headers):
            response.close()
            raise aiohttp.ClientPayloadError(
                "the server sent a part of the object in response to a request for all of it"
            )
        return response

    async def _next(self, most: int) -> bytes:
        content, most = bytearray(), min(most, _PIECE_BYTES)
        while len(content) < most and (more := await self._response.content.read(most - len(content))):
            content += more
        return bytes(content)

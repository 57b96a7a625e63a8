"""The body of one HTTP response, read in bounded memory and bounded time.

fsspec's own client reads a body whole whatever its length turns out to be, follows a server that sends a byte now and then
for hours, and takes the page that comes with a redirect for the content. Here the reader says how much it wants, a body
that drips is broken off, and a redirect is an error of its own: the address it leads to may be outside the audio roots.
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
"""Bytes that earn a transfer one more second of waiting; see `GRACE_S`."""
GRACE_S = 60.0
"""Seconds a transfer may fall behind `SLOWEST_BYTES_PER_S`, from its start or at any time later, before it is broken off."""
_PARTIAL = 206
_RANGE = re.compile(r"bytes 0-(\d+)/(\d+)")
_PIECE_BYTES = 1 << 20


async def _refuse_redirect(response: aiohttp.ClientResponse) -> None:
    """Raises: Redirected."""
    if 300 <= response.status < 400:
        response.close()
        target = response.headers.get("Location", "")
        with contextlib.suppress(ValueError):  # else it is shown as it came
            target = str(response.url.join(yarl.URL(target))) if target else ""
        raise Redirected(response.status, target)


def http_options(read_timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
    """Options of fsspec's HTTP file system under which no request follows a redirect or takes its page for content."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
    return {"allow_redirects": False, "client_kwargs": {"timeout": timeout, "raise_for_status": _refuse_redirect}}


def _is_whole(headers: Mapping[str, str]) -> bool:
    """Whether a partial answer is all there is, as far as it says."""
    said = headers.get("Content-Range", "bytes 0-0/1")
    found = _RANGE.fullmatch(said)
    return found is not None and int(found[1]) + 1 == int(found[2])


class HttpBody(io.RawIOBase):
    """One GET as a file that is read from start to end.

    Bytes arrive decompressed where the server compresses although it is asked not to; no more than asked for is held.
    Raises, while opening and reading: FileNotFoundError, PermissionError, Redirected or another aiohttp.ClientError;
        TimeoutError when the body drips.
    """

    def __init__(self, filesystem: HTTPFileSystem, url: str) -> None:
        super().__init__()
        self._filesystem, self._url = filesystem, url
        self._credit_s = GRACE_S
        self._at = 0
        self._response: aiohttp.ClientResponse = self._timed(self._get)

    def readable(self) -> bool:  # noqa: D102 - as io.RawIOBase has it, like the next two
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401, D102
        content: bytes = self._timed(self._next, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def read_at_most(self, max_bytes: int) -> bytes:
        """Read to the end, or `max_bytes` where there is more."""
        content = bytearray()
        while len(content) < max_bytes and (more := self._timed(self._next, max_bytes - len(content))):
            content += more
        return bytes(content)

    def close(self) -> None:
        """Drop the connection: what was not read is not waited for."""
        if not self.closed and hasattr(self, "_response"):
            self._filesystem.loop.call_soon_threadsafe(self._response.close)
        super().close()

    def _timed(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - whatever the call gives
        """Await a call for as long as there is credit, which waiting uses up and bytes earn."""
        started = time.monotonic()
        try:
            with plain_http_errors():
                found = sync(self._filesystem.loop, self._within, self._credit_s, call, *arguments)
        except TimeoutError:
            raise TimeoutError(f"the server stalls, or sends less than {SLOWEST_BYTES_PER_S // 1024} KiB/s") from None
        earned_s = len(found) / SLOWEST_BYTES_PER_S if isinstance(found, bytes) else 0.0
        self._credit_s = min(GRACE_S, self._credit_s - (time.monotonic() - started) + earned_s)
        return found

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
            raise aiohttp.ClientPayloadError("the server answers a request for the whole with a part of it")
        return response

    async def _next(self, most: int) -> bytes:
        content, most = bytearray(), min(most, _PIECE_BYTES)
        while len(content) < most and (more := await self._response.content.read(most - len(content))):
            content += more
        return bytes(content)

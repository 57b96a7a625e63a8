"""Audio behind plain or pre-signed HTTP URLs: what fails for a moment is tried again, what is final is called what it is."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.errors import Reason, RejectedRow
from pipeline.storage import filesystem, http_body, retry
from pipeline.storage.fetch import fetch
from tests.support.http_host import http_host, reply

CONTENT = bytes(range(256)) * 100


class _Host(BaseHTTPRequestHandler):
    """The path says how often a request fails and how, as in `/2/503`; `/0/endless` has no length and no end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        times, how = self.path.split("?")[0].strip("/").split("/")
        self.server.asked.append(self.path)
        if len(self.server.asked) <= int(times):
            if how == "stall":
                time.sleep(2)
            if how in ("stall", "reset"):
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._answer(int(how), b"no")
        elif how == "endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while self.command == "GET":
                self.wfile.write(b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT))
        elif how == "unsized":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(CONTENT)
            self.close_connection = True
        else:
            self._answer(200, CONTENT)

    do_HEAD = do_GET  # noqa: N815 - the handler's naming

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(retry, "BUDGET_S", 3.0)
    monkeypatch.setattr(filesystem, "READ_TIMEOUT_S", 0.5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.daemon_threads, server.asked, server.handle_error = True, [], lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(host: ThreadingHTTPServer, path: str, max_bytes: int = 10**6) -> bytes:
    return fetch(f"http://127.0.0.1:{host.server_port}{path}?X-Amz-Signature=secret", max_bytes=max_bytes)


@pytest.mark.parametrize(
    "path", ["/0/200", "/2/503", "/3/500", "/2/reset", "/2/stall", "/2/429", "/1/403", "/0/unsized"]
)
def test_what_can_be_read_is_read(host, path):
    """Fails if a 503 is called NOT_FOUND, as fsspec calls it, or a URL signed for GET alone is given up at HEAD's 403."""
    assert get(host, path) == CONTENT


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *((f"/99/{status}", "NOT_FOUND") for status in (404, 410)),
        *((f"/99/{status}", "FORBIDDEN") for status in (401, 403, 407)),
        *((f"/99/{status}", "REFUSED") for status in (400, 402, 405, 406, 409, 411, 413, 414, 416, 418, 422, 423, 451)),
    ],
)
def test_what_is_final_is_not_tried_again(host, path, reason):
    """Fails if a refusal costs the retry budget, or is called another's name."""
    with pytest.raises(RejectedRow) as rejected:
        get(host, path)
    assert rejected.value.reason == Reason(reason)
    assert len(host.asked) <= 5
    assert "secret" not in rejected.value.detail


@pytest.mark.parametrize("path", ["/99/503", "/99/reset"])
def test_what_stays_broken_is_fetch_failed(host, path):
    """Fails if an unreachable object is called missing."""
    with pytest.raises(RejectedRow) as rejected:
        get(host, path)
    assert rejected.value.reason == Reason.FETCH_FAILED
    assert rejected.value.attempts > 1
    assert "secret" not in rejected.value.detail


def test_a_body_without_end_is_too_large(host):
    """Fails if a server that never stops sending fills the memory."""
    with pytest.raises(RejectedRow) as rejected:
        get(host, "/0/endless", max_bytes=10 * len(CONTENT))
    assert rejected.value.reason == Reason.TOO_LARGE


def unbounded(request: BaseHTTPRequestHandler, *headers: tuple[str, str]) -> None:
    """64 MiB in chunks, far more than the connection buffers; counts what is taken of it."""
    request.send_response(200)
    for name, value in headers:
        request.send_header(name, value)
    if request.command == "HEAD":
        request.end_headers()
        return
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    for _ in range(1024):
        request.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        request.server.sent = getattr(request.server, "sent", 0) + 65536


@pytest.mark.parametrize("said", ["1000", "200000", None])
def test_fetch_unbounded(said, monkeypatch):
    """Fails if a body longer than its HEAD says, or one whose length nobody says, is held whole whatever `max_bytes` is."""
    monkeypatch.setattr(retry, "BUDGET_S", 1.0)
    server = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        server[:] = [request.server]
        unbounded(request, *([("Content-Length", said)] if said and request.command == "HEAD" else []))

    with http_host(answer) as address, pytest.raises(RejectedRow) as rejected:
        fetch(f"{address}/a.wav", max_bytes=250_000)
    assert rejected.value.reason == Reason.TOO_LARGE
    assert getattr(server[0], "sent", 0) < 16 << 20


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_bomb(encoding, monkeypatch):
    """Fails if 1 MiB that decompresses to 256 MiB is decompressed far past `max_bytes`."""
    taken = []
    real = http_body.HttpBody._next

    async def counted(self, most):
        taken.append(content := await real(self, most))
        return content

    monkeypatch.setattr(http_body.HttpBody, "_next", counted)
    bomb = _bomb(encoding)
    with (
        http_host(lambda request: reply(request, bomb, Content_Encoding=encoding)) as address,
        pytest.raises(RejectedRow) as rejected,
    ):
        fetch(f"{address}/a.wav", max_bytes=10**6)
    assert rejected.value.reason == Reason.TOO_LARGE
    assert sum(map(len, taken)) == 10**6 + 1


def _bomb(encoding: str) -> bytes:
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(256)) + squeeze.flush()


@pytest.mark.parametrize(("sized", "burst"), [(True, 0), (False, 0), (False, 1 << 20)])
def test_drip_hangs(sized, burst, monkeypatch):
    """Fails if a body that drips is read for as long as it drips: with a length or without, from the start or after a burst."""
    monkeypatch.setattr(retry, "BUDGET_S", 0.5)
    monkeypatch.setattr(http_body, "GRACE_S", 1.0)

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if sized:
            request.send_header("Content-Length", "5000000")
        request.end_headers()
        request.close_connection = True
        if request.command == "GET":
            request.wfile.write(bytes(burst))
            for _ in itertools.repeat(None, 100):
                request.wfile.write(b"x")
                request.wfile.flush()
                time.sleep(0.1)

    started = time.monotonic()
    with http_host(answer) as address, pytest.raises(RejectedRow) as rejected:
        fetch(f"{address}/a.wav", max_bytes=10**7)
    assert rejected.value.reason == Reason.FETCH_FAILED
    assert "TimeoutError" in rejected.value.detail and time.monotonic() - started < 8


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["https://elsewhere.example/b.wav?token=secret", "/b.wav?token=secret", ""])
def test_redirect(status, target):
    """Fails if the page of a redirect is taken for audio, the redirect is followed, or the row does not say where it leads."""
    asked = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        reply(request, b"moved", status, **({"Location": target} if target else {}))

    with http_host(answer) as address, pytest.raises(RejectedRow) as rejected:
        fetch(f"{address}/a.wav?k=secret", max_bytes=100)
    found = rejected.value
    assert (found.reason, str(found.stage), found.attempts) == (Reason.NOT_ALLOWED, "fetch", 1)
    assert f"/a.wav answers {status}, a redirect" in found.detail and "secret" not in found.detail
    assert target.partition("?")[0] in found.detail
    assert set(asked) == {"/a.wav?k=secret"}


def test_a_part_is_not_taken_for_the_whole(monkeypatch):
    """Fails if a server that sends a part unasked, and does not say how long the whole is, gives a cut recording."""
    monkeypatch.setattr(retry, "BUDGET_S", 0.2)
    ranges = {"/cut": "bytes 0-2/9", "/whole": "bytes 0-2/3"}

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        request.send_header("Content-Range", ranges[request.path])
        request.send_header("Connection", "close")
        request.end_headers()
        request.close_connection = True
        if request.command == "GET":
            request.wfile.write(b"abc")

    with http_host(answer) as address:
        assert fetch(f"{address}/whole", max_bytes=100) == b"abc"
        with pytest.raises(RejectedRow):
            fetch(f"{address}/cut", max_bytes=100)

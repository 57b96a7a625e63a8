"""Audio behind plain or pre-signed HTTP URLs: what fails for a moment is tried again, what is final is called what it is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import retrying, storage
from pipeline.errors import Reason, RejectedRow
from pipeline.storage import fetch

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
    monkeypatch.setattr(retrying, "BUDGET_S", 3.0)
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.5)
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

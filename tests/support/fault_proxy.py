"""A proxy before a real S3 server that fails on purpose, as networks and stores do.

Every request is forwarded unchanged, signature and host included. `plan` is called for each and may return a `Fault`.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

MUTATING = ("PUT", "POST", "DELETE")
STALL_S = 120.0


class Fault(StrEnum):
    """A failure of one request."""

    SLOW_DOWN = "503 before the store saw it"
    INTERNAL = "500 before the store saw it"
    RESET = "connection closed before the store saw it"
    LOST_ANSWER = "the store did it; the answer is lost"
    SHORT_BODY = "half of the body, then the connection is closed"
    STALL = "one byte of the body, then silence"
    FLIP = "one bit of the body is another"
    DENIED = "403 AccessDenied"
    EXPIRED = "400 ExpiredToken"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as a plan sees it: `number` counts all requests from 1, `mutation` the mutating ones (0 for others).

    Attributes:
        if_absent: true when it may only create, not overwrite (`If-None-Match: *`).
    """

    method: str
    path: str
    query: str
    number: int
    mutation: int
    if_absent: bool = False


Plan = Callable[[Request], Fault | None]


@dataclass
class FaultProxy:
    """The proxy's record of requests. `before` and `after` are called around the forwarding of mutating requests."""

    endpoint: str
    plan: Plan = lambda _: None
    before: Callable[[Request], None] = lambda _: None
    after: Callable[[Request], None] = lambda _: None
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[Request, Fault]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, target: str, *, if_absent: bool = False) -> Request:
        """Record a request."""
        split = urlsplit(target)
        with self._lock:
            mutation = sum(r.method in MUTATING for r in self.requests) + 1 if method in MUTATING else 0
            request = Request(method, split.path, split.query, len(self.requests) + 1, mutation, if_absent)
            self.requests.append(request)
            return request

    def note(self, request: Request, fault: Fault) -> None:
        """Record the fault of a request."""
        with self._lock:
            self.faults.append((request, fault))


def at_rate(rate: float, faults: list[Fault], seed: int) -> Plan:
    """Return a plan in which each request fails at this rate, with one of the faults that its method can have."""
    rng, lock = random.Random(seed), threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            if rng.random() >= rate:
                return None
            possible = [
                f for f in faults if request.method == "GET" or f not in (Fault.SHORT_BODY, Fault.STALL, Fault.FLIP)
            ]
            possible = [f for f in possible if request.method in MUTATING or f != Fault.LOST_ANSWER]
            return rng.choice(possible)

    return plan


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy on loopback before `upstream` (http://host:port)."""
    address = urlsplit(upstream).netloc
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
    server.proxy, server.upstream = proxy, address
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.closing = True
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy
    upstream: str
    closing = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the broken pipes of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        proxy = self.server.proxy
        if_absent = self.headers.get("If-None-Match") == "*"
        request = proxy.count(self.command, self.path, if_absent=if_absent)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if request.mutation:
            proxy.before(request)
        fault = proxy.plan(request)
        if fault is not None:
            proxy.note(request, fault)
        if fault == Fault.RESET:
            self.close_connection = True
            self.connection.close()
        elif fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
        else:
            status, headers, content = self._forward(body)
            if request.mutation:
                proxy.after(request)
            self._answer(status, headers, content, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - the names http.server looks for

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None) -> None:
        if fault == Fault.LOST_ANSWER:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == Fault.FLIP and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault in (Fault.SHORT_BODY, Fault.STALL) and content:
            self.wfile.write(content[: len(content) // 2] if fault == Fault.SHORT_BODY else content[:1])
            self.wfile.flush()
            ends = time.monotonic() + (STALL_S if fault == Fault.STALL else 0)
            while time.monotonic() < ends and not self.server.closing:
                time.sleep(0.1)
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_REFUSALS = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.INTERNAL: (500, "InternalError"),
    Fault.DENIED: (403, "AccessDenied"),
    Fault.EXPIRED: (400, "ExpiredToken"),
}

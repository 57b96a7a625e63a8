"""A receiver of OpenLineage events on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What a receiver got: events in order, and the whole of each request with its headers."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    """While it is set, requests get no answer."""

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the events of the jobs whose names begin with `name`."""
        return [event for event in self.events if event["job"]["name"].startswith(name)]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver on a free port."""
    received = Receiver()
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            while received.silent.is_set() and not closing.wait(0.02):
                pass
            received.authorizations.append(self.headers.get("Authorization", ""))
            received.events.append(json.loads(content))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    received.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield received
    finally:
        closing.set()
        server.shutdown()
        server.server_close()

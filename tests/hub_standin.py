"""A loopback stand-in for the Hugging Face hub: as much of its HTTP API as `huggingface_hub` uses for a download.

Repositories are dictionaries of revisions; a revision is a commit hash with files. Branches and tags point at commits.
Every request is noted as `METHOD path`, so that a test can tell what was asked for, or that nothing was.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Commits (40 hex digits -> name -> bytes) and what names point at them."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]


@dataclass
class Hub:
    """A running stand-in."""

    endpoint: str
    repositories: dict[str, Repository]
    requests: list[str] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = self._find(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/(.+?))?", path.rstrip("/"))
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            match = api or file
            repository = hub.repositories.get(match[1]) if match else None
            if repository is None or match is None:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            revision = (match[3] if api else match[2]) or "main"
            commit = repository.refs.get(revision, revision)
            files = repository.commits.get(commit)
            if files is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            if file:
                return self._file(files, file[3], commit)
            if match[2] == "tree":
                listed: object = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            else:
                listed = {"id": match[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()

        def _file(self, files: dict[str, bytes], name: str, commit: str) -> tuple[int, dict[str, str], bytes]:
            if name not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            etag = hashlib.sha1(files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, files[name]

    return Handler


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run a stand-in on a free loopback port."""
    hub = Hub("", repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

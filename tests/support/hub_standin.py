"""A loopback stand-in for the Hugging Face hub: as much of its HTTP API as `huggingface_hub` uses for downloads and commits.

Repositories are dictionaries of revisions; a revision is a commit hash with files. Branches and tags point at commits.
Every request is recorded as `METHOD path`. Weights have their sha256 as ETag, like files that the hub keeps in LFS; their
download can be cut, stopped halfway, damaged, or refused by a gate.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.support import hub_commits


@dataclass
class Repository:
    """A repository: its commits (40 hex digits -> name -> bytes), and the branches and tags that point at them."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False
    visibility: str = "public"


@dataclass
class Hub:
    """A running stand-in.

    Attributes:
        repositories: by name; the name of a dataset begins with `datasets/`.
        writers: tokens that may write.
        uploaded: large files by their sha256.
        cut: file name -> number of its next GETs that end halfway, with the connection.
        damaged: names of files whose last byte arrives changed.
        held: names of files of which half arrives, and the rest when the name is removed.
    """

    endpoint: str
    repositories: dict[str, Repository]
    requests: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def new_repository(self, name: str, visibility: str) -> None:
        """Create an empty repository with a first commit."""
        first = hashlib.sha1(name.encode()).hexdigest()
        self.repositories[name] = Repository({first: {".gitattributes": b""}}, {"main": first}, visibility=visibility)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the broken pipes of clients that were killed."""


def _tree(files: dict[str, bytes], prefix: str) -> list[dict[str, object]]:
    """The entries of one folder of a repository."""
    below = {name.removeprefix(prefix): content for name, content in files.items() if name.startswith(prefix)}
    folders = dict.fromkeys(name.partition("/")[0] for name in below if "/" in name)
    return [
        *({"type": "directory", "path": f"{prefix}{name}", "oid": "0" * 40} for name in folders),
        *(
            {"type": "file", "path": f"{prefix}{n}", "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in below.items() if "/" not in n
        ),
    ]  # fmt: skip


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, body = hub_commits.write(hub, self.command, path, token, content)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST  # noqa: N815 - the handler's naming

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = self._find(path)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if status == 200 and wanted and body:
                start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
                status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
                body = body[start : end + 1]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            name = path.rpartition("/")[2]
            if with_body and status in (200, 206) and hub.cut.get(name):
                hub.cut[name] -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            if with_body:
                half = len(body) // 2
                self.wfile.write(body[:half])
                while name in hub.held:
                    time.sleep(0.02)
                self.wfile.write(body[half:])

        def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
            api = re.fullmatch(
                r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+?)(?:/(revision|tree)/(.+?))?",
                path.rstrip("/"),
            )
            file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            match = api or file
            repository = hub.repositories.get(match[1]) if match else None
            if repository is None or match is None:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            if repository.gated:
                return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
            stated = (match[3] if api else match[2]) or "main"
            at = re.match(r"refs/[^/]+/[^/]+|[^/]*", stated)
            revision = at[0] if at else ""
            inner = stated[len(revision) + 1 :]
            commit = repository.refs.get(revision, revision)
            files = repository.commits.get(commit)
            if files is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            if file:
                return self._file(files, file[3], commit)
            if match[2] == "tree":
                listed: object = _tree(files, f"{inner}/" if inner else "")
                if inner and not listed:
                    return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            else:
                listed = {"id": match[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()

        def _file(self, files: dict[str, bytes], name: str, commit: str) -> tuple[int, dict[str, str], bytes]:
            if name not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            content = files[name]
            large = name.endswith((".safetensors", ".bin"))
            etag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            if name in hub.damaged:
                content = content[:-1] + bytes([content[-1] ^ 1])
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content

    return Handler


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run a stand-in on a free loopback port."""
    hub = Hub("", repositories)
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.held.clear()
        server.shutdown()
        server.server_close()
        thread.join()

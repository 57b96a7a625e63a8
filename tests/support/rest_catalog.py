"""An Iceberg REST catalog on loopback: the part of the protocol that pyiceberg's client uses, over pyiceberg's SQL catalog."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchNamespaceError, NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest


@dataclass
class Served:
    """A running catalog, and the requests that it got."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


def _loaded(metadata: Any, location: str | None) -> dict[str, Any]:
    return {"metadata-location": location, "metadata": json.loads(metadata.model_dump_json()), "config": {}}


def _answer(catalog: SqlCatalog, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    if path == "/v1/config":
        return 200, {"defaults": {}, "overrides": {}}
    found = re.fullmatch(r"/v1/namespaces(?:/([^/]+)(/tables(?:/([^/]+))?)?)?", path)
    if found is None:
        return 400, {"error": {"message": path, "type": "BadRequest", "code": 400}}
    namespace, tables, name = found.groups()
    answer = _of_namespaces if not tables else _of_table if name else _created
    return 200, answer(catalog, method, (namespace, name), body)


def _of_namespaces(catalog: SqlCatalog, method: str, asked: tuple[Any, Any], body: bytes) -> dict[str, Any]:
    if method == "POST":
        catalog.create_namespace_if_not_exists(tuple(json.loads(body)["namespace"]))
        return dict(json.loads(body))
    return {"namespace": [asked[0]], "properties": catalog.load_namespace_properties(asked[0])}


def _created(catalog: SqlCatalog, _method: str, asked: tuple[Any, Any], body: bytes) -> dict[str, Any]:
    """Return the metadata of a table that the commit which follows creates."""
    wanted = json.loads(body)
    staged = catalog._create_staged_table((asked[0], wanted["name"]), Schema.model_validate(wanted["schema"]))
    return _loaded(staged.metadata, None)


def _of_table(catalog: SqlCatalog, method: str, asked: tuple[Any, Any], body: bytes) -> dict[str, Any]:
    if method == "POST":
        wanted = CommitTableRequest.model_validate_json(body)
        done: Any = catalog.commit_table(
            SimpleNamespace(name=lambda: asked),  # type: ignore[arg-type]
            wanted.requirements,
            wanted.updates,
        )
    else:
        done = catalog.load_table(asked)
    return _loaded(done.metadata, done.metadata_location)


def _handler(served: Served, catalog: SqlCatalog) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            served.requests.append((self.command, path))
            served.tokens.add(self.headers.get("Authorization", ""))
            try:
                status, document = _answer(catalog, self.command, path, body)
            except (NoSuchTableError, NoSuchNamespaceError) as error:
                status, document = 404, {"error": {"message": str(error), "type": type(error).__name__, "code": 404}}
            except CommitFailedException as error:
                status, document = 409, {"error": {"message": str(error), "type": type(error).__name__, "code": 409}}
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_GET  # noqa: N815 - the handler's naming

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def rest_catalog(folder: Path) -> Iterator[Served]:
    """Run a catalog whose tables are below `folder`."""
    served = Served()
    catalog = SqlCatalog(
        "rest", uri=f"sqlite:///{folder}/rest.db?check_same_thread=false", warehouse=f"file://{folder}/rest"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served, catalog))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        catalog.close()

"""A manifest that changes while it is read: its rows would be of two versions, so that none of them is planned."""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, JobError
from pipeline.manifest.read import read_manifest
from tests.support.http_host import http_host, reply
from tests.support.s3_server import S3Server

ROWS = 30_000


def jsonl(letter: str) -> bytes:
    rows = ({"id": f"{letter}{i:06d}", "audio": f"/a/{i:06d}.wav", "text": "x" * 60} for i in range(ROWS))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(letter: str) -> bytes:
    ids = [f"{letter}{i:06d}" for i in range(ROWS)]
    content = io.BytesIO()
    pq.write_table(
        pa.table({"id": ids, "audio": ["/a/x.wav"] * ROWS}), content, row_group_size=1000, compression="none"
    )
    return content.getvalue()


def read(uri: str, swap: Callable[[], None] | None = None) -> set[str]:
    """The first letters of all ids; `swap` is called after the first chunk."""
    letters: set[str] = set()
    for number, chunk in enumerate(read_manifest(uri, chunk_rows=1000)):
        letters |= {name[0] for name in chunk.rows["recording_id"].to_pylist()}
        if number == 0 and swap is not None:
            swap()
    return letters


def rewrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def replace(path: Path, content: bytes) -> None:
    (path.parent / "next").write_bytes(content)
    (path.parent / "next").replace(path)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content[-100:])


def remove(path: Path, _content: bytes) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [rewrite, replace, append, remove])
@pytest.mark.parametrize("make", [jsonl, parquet])
def test_local(change, make, tmp_path) -> None:
    """Fails if a file that is rewritten, replaced, extended or deleted while it is read gives rows of two versions."""
    path = tmp_path / "m"
    path.write_bytes(make("o"))
    os.utime(path, (1, 1))
    assert read(str(path)) == {"o"}
    with pytest.raises(JobError, match="changed while it was read"):
        read(str(path), lambda: change(path, make("n")))


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("make", [jsonl, parquet])
def test_http(mark, make) -> None:
    """Fails if a server that replaces the file between two answers, at the same length, gives rows of two versions."""
    versions = itertools.cycle([make("o"), make("n")])
    current = [next(versions)]

    def answer(request: BaseHTTPRequestHandler) -> None:
        reply(request, current[0], Accept_Ranges="bytes", **{mark: f'"{hash(current[0])}"'})

    with http_host(answer) as address:
        assert read(f"{address}/m") == {"o"}
        with pytest.raises(JobError, match=f"changed while it was read .its {mark}"):
            read(f"{address}/m", lambda: current.__setitem__(0, next(versions)))
        assert read(f"{address}/m") == {"n"}


@pytest.mark.parametrize("make", [jsonl, parquet])
def test_http_without_ranges_or_length(make) -> None:
    """Fails if a manifest whose server knows neither ranges nor lengths cannot be read, which Parquet once could not."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        request.close_connection = True
        if request.command == "GET":
            request.wfile.write(make("o"))

    with http_host(answer) as address:
        assert read(f"{address}/m") == {"o"}


def test_http_that_drips(monkeypatch) -> None:
    """Fails if a manifest that comes byte by byte is read for as long as it comes."""
    monkeypatch.setattr("pipeline.storage.http_body.GRACE_S", 0.5)
    line = jsonl("o")

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(line)))
        request.end_headers()
        for byte in line[:200] if request.command == "GET" else b"":
            request.wfile.write(bytes([byte]))
            time.sleep(0.05)

    with http_host(answer) as address, pytest.raises(JobError, match="less than 256 KiB/s"):
        read(f"{address}/m")


def test_http_redirect() -> None:
    """Fails if the page of a redirect is read as a manifest, or the redirect is followed."""
    with (
        http_host(lambda request: reply(request, jsonl("o"), 302, Location="/other?token=secret")) as address,
        pytest.raises(ConfigError, match=r"/m answers 302, a redirect to http://\S+/other\. ") as refused,
    ):
        read(f"{address}/m?token=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("make", [jsonl, parquet])
def test_s3(make, s3: S3Server) -> None:
    """Fails if an object that is replaced while it is read gives rows of two versions."""
    files, key = s3.filesystem(), f"{s3.bucket}/torn/{make.__name__}"
    files.pipe_file(key, make("o"))
    assert read(f"s3://{key}") == {"o"}
    with pytest.raises(JobError, match="changed while it was read"):
        read(f"s3://{key}", lambda: files.pipe_file(key, make("n")))

"""Large objects are fetched to unnamed files: the same bytes and the same reasons as in memory, from every store."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import JobError, Reason, RejectedRow
from pipeline.storage import on_disk, retry
from pipeline.storage.fetch import fetch
from pipeline.storage.on_disk import fetched_to_disk
from tests.support.http_host import http_host, reply

CONTENT = os.urandom(3_000_001)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Retries end soon, and objects need several ranges."""
    monkeypatch.setattr(retry, "BUDGET_S", 0.5)
    monkeypatch.setattr(on_disk, "_RANGE_BYTES", 1_000_000)


def read(uri: str, **options) -> bytes:
    with fetched_to_disk(uri, **{"max_bytes": 10**7, **options}) as file:
        assert Path(f"/proc/self/fd/{file.fileno()}").readlink().name.endswith("(deleted)")
        return file.read()


@pytest.fixture(params=["disk", "http", "s3"])
def uri(request, tmp_path):
    """The same object in each kind of store."""
    if request.param == "disk":
        (tmp_path / "a.wav").write_bytes(CONTENT)
        yield str(tmp_path / "a.wav")
    elif request.param == "http":
        with http_host(lambda asked: reply(asked, CONTENT, 200 if asked.path == "/a.wav" else 404)) as address:
            yield f"{address}/a.wav"
    else:
        s3 = request.getfixturevalue("s3")
        s3.filesystem().pipe_file(f"{s3.bucket}/disk/a.wav", CONTENT)
        yield f"s3://{s3.bucket}/disk/a.wav"


def test_the_file_holds_the_object(uri):
    """Fails if a part is lost or doubled between two reads or ranges."""
    assert read(uri) == CONTENT


@pytest.mark.parametrize("change", ["missing", "large"])
def test_reasons_are_those_of_a_fetch_into_memory(uri, change):
    """Fails if an object that is missing or too large has another reason than in memory, or the limit is not kept."""
    uri = f"{uri}.none" if change == "missing" else uri
    reasons = []
    for call in (fetch, read):
        with pytest.raises(RejectedRow) as caught:
            call(uri, max_bytes=len(CONTENT) - 1)
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1] == (Reason.NOT_FOUND if change == "missing" else Reason.TOO_LARGE)


def test_a_body_that_grows_past_the_limit_is_refused():
    """Fails if a server that states a small size can fill the disk."""

    def endless(asked):
        asked.send_response(200)
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        while asked.command == "GET":
            asked.wfile.write(b"%x\r\n%b\r\n" % (100_000, bytes(100_000)))

    with http_host(endless) as address, pytest.raises(RejectedRow) as caught:
        read(f"{address}/a.wav", max_bytes=5_000_000)
    assert caught.value.reason == Reason.TOO_LARGE


def test_an_object_that_changes_between_its_ranges_is_not_mixed(s3, monkeypatch):
    """Fails if the beginning of one version and the end of another are decoded as one file."""
    files = s3.filesystem()
    uri = f"s3://{s3.bucket}/disk/changing.wav"
    files.pipe_file(uri, CONTENT)
    other = os.urandom(len(CONTENT))
    real, calls = on_disk.read_range, []

    def overwriting(filesystem, path, start, end):
        calls.append(start)
        if len(calls) == 2:
            files.pipe_file(uri, other)
        return real(filesystem, path, start, end)

    monkeypatch.setattr(on_disk, "read_range", overwriting)
    monkeypatch.setattr(retry, "BUDGET_S", 20.0)
    assert read(uri) == other


def test_a_link_turned_after_the_check_is_refused(tmp_path):
    """Fails if the opened file is not checked, only its name."""
    (tmp_path / "a.wav").write_bytes(b"secret")

    def refuse(path: str) -> None:
        raise RejectedRow(Reason.NOT_ALLOWED, path, "fetch")

    with pytest.raises(RejectedRow) as caught:
        read(str(tmp_path / "a.wav"), allow=refuse)
    assert caught.value.reason == Reason.NOT_ALLOWED


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_tmpdir_stops_the_job_by_name(uri, number, monkeypatch):
    """Fails if a full disk rejects the row, is retried for a minute, or does not name the folder."""
    real = tempfile.TemporaryFile

    def full(*arguments, **options):
        file = real(*arguments, **options)

        def write(_: bytes) -> int:
            raise OSError(number, os.strerror(number))

        file.write = write
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(JobError, match=rf"MB are free in {tempfile.gettempdir()}. Make room there, or set TMPDIR"):
        read(uri)

"""Erasure on an object store, killed before every request that changes it."""

from __future__ import annotations

from pathlib import Path

from pipeline.storage.store import Store, open_store
from tests.support.erasing import check_kills, make, values
from tests.support.s3_server import S3Server


def test_a_kill_at_any_request_is_completed(s3: S3Server, tmp_path: Path) -> None:
    """Fails if an object store shows other files than a disk after a kill at some request."""
    files, prefix = s3.filesystem(), f"{s3.bucket}/{tmp_path.name}"
    make(f"s3://{prefix}/out", tmp_path)
    copies = iter(range(1000))

    def make_copy() -> Store:
        name = f"{prefix}/copy{next(copies)}"
        for path in files.find(f"{prefix}/out"):
            files.copy(path, name + path.removeprefix(f"{prefix}/out"))
        return open_store(f"s3://{name}")

    assert check_kills(make_copy, values(make_copy())) > 15

"""The corpus as it is now, from the ids that each night keeps."""

from __future__ import annotations

import io
import json
from pathlib import Path

import duckdb
import pytest

from pipeline.dataset import corpus_ids
from pipeline.dataset.corpus_ids import keep_ids
from pipeline.storage.store import open_store
from tests.support.outputs import finished_output


def lines(*names: str) -> io.BytesIO:
    return io.BytesIO(b"".join(json.dumps({"id": name, "text": "private"}).encode() + b"\n" for name in names))


def test_the_query_of_the_documentation_sees_the_last_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a removed file counts as current, an earlier night wins, the same ids are written twice, or texts are kept."""
    monkeypatch.setattr(corpus_ids, "_ROWS_AT_ONCE", 2)
    times = iter(["20261129T010000Z", "20261130T010000Z", "20261201T010000Z", "20261202T010000Z"])
    finished_output(str(tmp_path / "emotions"), tmp_path / "m")
    store = open_store(str(tmp_path / "emotions"))
    monkeypatch.setattr(corpus_ids.time, "strftime", lambda *_: next(times))
    assert keep_ids(store, lines("r0", "r1", "r2", "gone"))
    assert keep_ids(store, lines("r0", "r2", "s1"))
    assert keep_ids(store, lines("r0", "r2", "s1")) is None
    page = Path("docs/nightly.md").read_text()
    query = page[page.index("    with current as") : page.index("The files of earlier nights there")]
    query = query.replace("'emotions/", f"'{tmp_path}/emotions/").replace(
        "select emotion, count(*)", "select recording_id"
    )
    found = duckdb.sql(query).fetchall()
    assert sorted(found) == [("r0",), ("r2",), ("s1",)]
    assert all(b"private" not in path.read_bytes() for path in (tmp_path / "emotions/_runs/corpus").iterdir())
    assert keep_ids(store, lines()) and len(list((tmp_path / "emotions/_runs/corpus").iterdir())) == 3

"""An output with rows to erase, searches of all its bytes, and erasures that are killed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.erase.choice import find, rows_where
from pipeline.dataset.erase.protocol import Changes, begin, finish, pending
from pipeline.dataset.erase.rewrite import rewrite
from pipeline.dataset.reader import committed_rows, finished_rows
from pipeline.dataset.tombstones import read_tombstones
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.storage.cleanup import walk
from pipeline.storage.store import Store, open_store
from tests.support.outputs import annotate, plan_rows, publish_plan


def secret(name: str, **more: object) -> dict[str, object]:
    return {"id": f"secret-{name}", "audio": f"/a/secret-{name}.wav", "text": f"Secret words of {name}.", "speaker": "a",
            "note": f"secret note {name}", **more}  # fmt: skip


def plain(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "audio": f"/a/{name}.wav", "text": f"Words of {name}.", "speaker": "b", "note": name, **more}


FIRST = [
    *(
        plain("r0"),
        secret("one"),
        plain("r1"),
        plain("r4"),
        secret("two", speaker="alone"),
        plain("r2"),
        plain("r7"),
    ),
    secret("three", speaker="b"),
    {"id": "bad", "audio": 5, "note": "kept"},
    {"id": "secret-bad", "audio": 5, "note": "secret-bad"},
    {"audio": 7, "note": "secret nameless"},
]
SECOND = [secret("four"), secret("five"), plain("s1", speaker="a")]
MARK = b"ecret"


def make(output: str, folder: Path) -> Store:
    """Write two published plans with rows to erase: among others, alone in a shard, rejected, and refused while planning."""
    store = open_store(output)
    for number, records in enumerate([FIRST, SECOND]):
        plan = plan_rows(store, folder / str(number), records)
        annotate(output, plan)
        publish_plan(store, plan)
    return store


def contents(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of every file and, of Parquet, its decoded values, footer and Arrow schema."""
    for file in walk(store):
        content = store.read(file.key)
        yield file.key, content
        if file.key.endswith(".parquet"):
            with pq.ParquetFile(io.BytesIO(content)) as parquet:
                yield file.key, json.dumps(parquet.read().to_pylist(), default=str).encode()
                for name, value in (parquet.metadata.metadata or {}).items():
                    yield file.key, value
                    if name == b"ARROW:schema":
                        yield file.key, base64.b64decode(value)


def with_mark(store: Store) -> set[str]:
    return {key for key, content in contents(store) if MARK in content}


def values(store: Store) -> dict[str, pa.Table]:
    """Return the rows that stay, of utterances and rejects, with all columns in their order."""
    rows = finished_rows(store)
    with_all = {"utterances": rows.utterances().to_table(), "rejects": rows.rejects().to_table()}
    return {
        name: table.filter(
            pa.array([MARK not in json.dumps(row, default=str).encode() for row in table.to_pylist()], pa.bool_())
        )
        for name, table in with_all.items()
    }


def erase(store: Store, condition: str, changes: Changes | None = None) -> None:
    """Finish an unfinished erasure, then erase what a condition is true for: what the command does."""
    changes = changes or Changes(store)
    plans, entry = pending(store)
    if entry is None:
        rows = committed_rows(store)
        chosen = find(rows, *rows_where(rows, condition))
        if not chosen.plans:
            return
        entry = begin(changes, plans, chosen, "asked to")
    for _ in rewrite(changes, entry, plans, read_tombstones(store, entry)):
        pass
    finish(changes, entry)


WHERE = "recording_id LIKE '%ecret%' OR raw LIKE '%ecret%'"


class Killed(BaseException):
    """The process ends."""


class Kill:
    """A hook that ends the process at one call. Counts the calls."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Killed


def check_readers(store: Store, staying: set[str]) -> None:
    """Assert what a reader of all parts finds at any time: whole files, each utterance once, every row that stays."""
    found = []
    for entry in store.list("utterances"):
        found += pq.read_table(pa.BufferReader(store.read(entry.key)), columns=["utterance_id"])[
            "utterance_id"
        ].to_pylist()
    assert len(found) == len(set(found)) and staying <= set(found)


def check_kills(make_copy, staying: dict[str, pa.Table]) -> int:
    """Kill an erasure before and after each change of a fresh copy, repeat the command, and check. Returns: the changes."""
    counting = Kill()
    store = make_copy()
    erase(store, WHERE, Changes(store, before=counting))
    ids = set(staying["utterances"]["utterance_id"].to_pylist())
    # killed after a change is as killed before the next one
    for moment, call in [*(("before", call + 1) for call in range(counting.calls)), ("after", counting.calls)]:
        store = make_copy()
        with pytest.raises(Killed):
            erase(store, WHERE, Changes(store, **{moment: Kill(call)}))
        check_readers(store, ids)
        entry = pending(store)[1]
        if entry is not None:
            assert audit(store).status == "unfinished" and not audit(store).violations
            with pytest.raises(ConfigError, match=f"erasure {entry.plan} .*--finish"):
                finished_rows(store)
        erase(store, WHERE)
        assert with_mark(store) == set(), call
        after = values(store)
        assert all(after[name].equals(table) for name, table in staying.items()), call
        found = audit(store)
        assert ([v.line() for v in found.violations], found.status) == ([], "sound"), call
    return counting.calls

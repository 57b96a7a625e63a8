"""Outputs of many nights in memory, quickly made, and a store that counts and delays its calls as an object store would."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.history import History
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import Receipt, committed_parts, ids_sha256, new_attempt, write_part
from pipeline.dataset.plan import Plan, read_shard, write_plan
from pipeline.dataset.publish import publish
from pipeline.errors import Reason, Reject, Stage
from pipeline.layout import PAGE, part_key, run_key
from pipeline.manifest.policy import Policy
from pipeline.manifest.records import RejectedLine
from pipeline.manifest.rejects import lines_table
from pipeline.pins import ModelPin, Role
from pipeline.schema import ROW_SCHEMA, utterance_schema
from pipeline.storage.store import StoredObject
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings

_PAGE_OBJECTS = 1000
"""Objects in one page of a listing."""


class CountingStore(MemoryStore):
    """A store that counts requests by kind; each takes `delay_s`."""

    def __init__(self, objects: dict[str, bytes] | None = None, *, delay_s: float = 0.0) -> None:
        super().__init__(objects)
        self.calls: Counter[str] = Counter()
        self.delay_s = delay_s

    def count(self, kind: str, times: int = 1) -> None:
        self.calls[kind] += times
        time.sleep(self.delay_s * times)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        self.count("put")
        return super().put_if_absent(key, content)

    def read(self, key: str) -> bytes:
        self.count("read")
        return super().read(key)

    def read_tail(self, key: str, size_bytes: int = 65536) -> bytes:
        self.count("read")
        return super().read(key)[-size_bytes:]

    def open(self, key: str) -> BinaryIO:
        self.count("open")
        return _CountedFile(super().read(key), self)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        found = list(super().list(prefix))
        self.count("page", max(1, -(-len(found) // _PAGE_OBJECTS)))
        return iter(found)


class _CountedFile(io.BytesIO):
    """A file each of whose reads is a request."""

    def __init__(self, content: bytes, store: CountingStore) -> None:
        super().__init__(content)
        self._store = store

    def read(self, size: int | None = -1) -> bytes:
        self._store.count("range")
        return super().read(size)


def add_night(
    store: MemoryStore,
    number: int,
    *,
    rows: int = 3,
    rejected: Sequence[int] = (),
    reason: Reason = Reason.NOT_FOUND,
    unreadable: int = 0,
    published: bool = True,
) -> Plan:
    """Write and publish the plan of a night. Args: rejected: rows that were rejected; unreadable: rejects of planning."""
    ids = [f"n{number:05d}-{row}" for row in range(rows)]
    made = write_plan(
        store, number, _selection(ids, number, unreadable), settings=job_settings(),  # type: ignore[arg-type]
        models={Role.parse("fusion/en"): ModelPin("m", None, "ab" * 32, 1)}, embedding_widths={},
        manifests=[f"/m/{number}.jsonl"], size=ShardSize(1000, 1e9), needs_text=True,
    )  # fmt: skip
    assert made is not None
    if published:
        finish(store, made, rejected, reason)
    return made


def finish(store: MemoryStore, plan: Plan, rejected: Sequence[int] = (), reason: Reason = Reason.NOT_FOUND) -> None:
    """Commit the parts of a plan, without utterances, and publish it with a page."""
    causes = tuple((row, Reject(reason, "no object", Stage.FETCH)) for row in rejected)
    for shard in plan.shards():
        table = read_shard(store, shard)
        receipt = Receipt(plan.plan, shard.number, new_attempt(), table.num_rows, 0, ids_sha256(table), plan.config_hash,
                          plan.models, 0.0, {}, causes)  # fmt: skip
        empty = utterance_schema({}, "float32", version=SCHEMA_VERSION).empty_table()
        write_part(store, part_key(shard.name, ""), empty, receipt)
    publish(store, plan, committed_parts(store, [plan])[plan.plan], {"run_id": plan.plan, "finished_at": "2026-11-29"})
    store.put_if_absent(run_key(plan.plan, PAGE), b"<html>")


def _selection(ids: Sequence[str], number: int, unreadable: int) -> Any:
    count = len(ids)
    given = {"recording_id": ids, "audio": [f"/a/{i}.wav" for i in ids], "manifest": ["m"] * count,
             "line": range(1, count + 1), "language": ["en"] * count, "text": ["t"] * count}  # fmt: skip
    columns = [pa.array(given.get(field.name, [None] * count), field.type) for field in ROW_SCHEMA]
    rows = pa.table(columns, schema=ROW_SCHEMA)
    lines = [
        RejectedLine(line, Reject(Reason.MALFORMED, "no JSON", Stage.MANIFEST), f"{number}?")
        for line in range(unreadable)
    ]
    rejects = [lines_table(lines, f"/m/{number}.jsonl")] if lines else []
    staging = SimpleNamespace(extra=pa.schema([]), policy=Policy())
    return SimpleNamespace(staging=staging, excluded={}, tables=lambda: [rows], rejects=lambda: rejects)


def many_nights(count: int, *, indexed: bool = True) -> MemoryStore:
    """Return the output of so many nights with a reject each. Args: indexed: whether each night extended the index."""
    store = MemoryStore()
    for number in range(1, count + 1):
        history = History(store) if indexed else None
        if history is not None:
            start(history)
        add_night(store, number, rejected=[0], reason=Reason.NOT_AUDIO)
        if history is not None:
            history.extend()
    return store


def start(history: History) -> None:
    """Read what a driver reads of the earlier nights before it plans, with the options of `jobs.nightly`."""
    from pipeline.dataset.retries import find_retriable
    from pipeline.dataset.survey import survey
    from pipeline.errors import TRANSIENT_REASONS

    find_retriable(history, history.plans, TRANSIENT_REASONS, 5)
    held, _ = history.held(history.plans)
    for _ in held:
        pass
    survey(history, io.StringIO())

"""A `Store` in memory, for tests of plan and commit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store import StoredObject


class MemoryStore:
    """A store that keeps objects in a dict. With `conditional = False` it is a store that must be refused."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.root = "memory"
        self.objects = dict(objects or {})
        self.conditional = True
        self.overwritten: list[str] = []

    def copy(self) -> MemoryStore:
        return MemoryStore(self.objects)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        if key in self.objects:
            if self.conditional:
                return False
            self.overwritten.append(key)
        self.objects[key] = content
        return True

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.read(key))

    def read_tail(self, key: str, size_bytes: int = 65536) -> bytes:
        return self.read(key)[-size_bytes:]

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter([StoredObject(k, len(self.objects[k])) for k in self.keys(prefix)])

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key == prefix or key.startswith(prefix + "/"))

    def table(self, key: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.objects[key]))

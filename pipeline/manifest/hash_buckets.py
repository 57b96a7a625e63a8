"""Hash buckets on disk: find duplicate ids in little memory, with 16 bytes per id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.storage.temporary import naming_full_disk

Keys = NDArray[np.bytes_]
Positions = NDArray[np.int64]

_KEY = np.dtype("S16")
_ENTRY = np.dtype([("key", _KEY), ("position", "<i8")])
_AT_ONCE = 65_536
"""Keys buffered in memory before a write: shards add a few at a time, and each write opens every bucket file."""
_NUM_BUCKETS = 64
"""Number of buckets. Each holds a 64th of the keys: 375 MB of 10^9, and a few times that while it is searched."""


def key_of(*parts: str) -> bytes:
    """Return the key of an id or a rejected line, for comparison with those of earlier plans."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_keys(content: bytes | bytearray) -> Keys:
    """Return concatenated keys as an array."""
    return np.frombuffer(content, dtype=_KEY)


def id_keys(ids: Iterable[str]) -> Keys:
    """Return one key per recording id."""
    return as_keys(b"".join(map(key_of, ids)))


class HashBuckets:
    """Keys in hash buckets on disk, chosen by their first byte, each with its position in the order of `add`.

    Args:
        folder: a new folder for the buckets, created here; it grows by 24 bytes per key.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._files = [folder / f"{number:02}" for number in range(_NUM_BUCKETS)]
        self._waiting: list[Keys] = []
        self._count = self._written = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: Keys) -> None:
        """Add keys."""
        self._waiting.append(keys)
        self._count += len(keys)
        if self._count - self._written >= _AT_ONCE:
            self._write()

    def _write(self) -> None:
        keys = np.concatenate([id_keys([]), *self._waiting])
        entries = np.empty(len(keys), dtype=_ENTRY)
        entries["key"] = keys
        entries["position"] = np.arange(self._written, self._count)
        buckets = keys.view(np.uint8).reshape(-1, _KEY.itemsize)[:, 0] % _NUM_BUCKETS
        entries = entries[np.argsort(buckets, kind="stable")]
        ends = np.cumsum(np.bincount(buckets, minlength=_NUM_BUCKETS))
        for file, of_bucket in zip(self._files, np.split(entries, ends[:-1]), strict=True):
            if len(of_bucket):
                with naming_full_disk(file), file.open("ab") as bucket:
                    bucket.write(of_bucket.tobytes())
        self._waiting, self._written = [], self._count

    def buckets(self) -> Iterator[tuple[Keys, Positions]]:
        """Yield every bucket in a fixed order, empty ones too; positions increase within each."""
        self._write()
        for file in self._files:
            entries = np.fromfile(file, dtype=_ENTRY) if file.exists() else np.empty(0, dtype=_ENTRY)
            yield entries["key"].copy(), entries["position"].copy()


def repeated(keys: Keys) -> NDArray[np.bool_]:
    """Return a mask of the keys that occur more than once."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    same_as_previous = np.zeros(len(keys), dtype=bool)
    same_as_previous[1:] = ranked[1:] == ranked[:-1]
    same = same_as_previous.copy()
    same[:-1] |= same_as_previous[1:]
    mask = np.empty(len(keys), dtype=bool)
    mask[order] = same
    return mask

"""Erasures as entries in the log of plans, and the hashes that keep erased rows from coming back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.manifest.hash_buckets import Keys

_KEY_BYTES, _HASH_BYTES = 16, 32
TOMBSTONES = pa.schema([pa.field("hash", pa.binary(_HASH_BYTES), nullable=False)])
"""Columns of a file of tombstones."""


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """Numbers of the rows that one erasure takes from one plan.

    Attributes:
        rows: planned rows.
        rejects: rows rejected while planning.
        retries: rows that the plan had taken over, by the plan that rejected them.
    """

    rows: int = 0
    rejects: int = 0
    rows_without_text: int = 0
    audio_s: float = 0.0
    retries: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Erasure:
    """The intent of an erasure; it holds no id.

    Attributes:
        salt: hex; all erasures of a dataset have the same.
        file: key of the tombstones: the salted hashes of the keys of erased ids and of erased rejects.
        plans: what is taken from each plan.
        tables: Delta, Iceberg and Lance tables to erase from, as `--table` names them.
    """

    reason: str
    salt: str
    file: str
    plans: Mapping[str, ErasedRows]
    tables: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "plans": {plan: asdict(rows) for plan, rows in self.plans.items()}}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Erasure:
        """Read the JSON form. Raises: TypeError."""
        plans = {plan: ErasedRows(**rows) for plan, rows in document["plans"].items()}
        return cls(**{**document, "plans": plans, "tables": tuple(document["tables"])})


class Tombstones:
    """The salted hashes of erased keys. Memory: 32 bytes each."""

    def __init__(self, salt: str = "", hashes: NDArray[np.bytes_] | None = None) -> None:
        self.salt = salt
        self._hashes = np.array([], dtype=f"S{_HASH_BYTES}") if hashes is None else hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def matches(self, keys: Keys) -> NDArray[np.bool_]:
        """Return a mask of the keys that were erased."""
        if not len(self):
            return np.zeros(len(keys), dtype=bool)
        return np.isin(salted(self.salt, keys), self._hashes)

    def table(self) -> pa.Table:
        """Return the tombstones as they are stored."""
        content = self._hashes.tobytes()
        hashes = [content[at : at + _HASH_BYTES] for at in range(0, len(content), _HASH_BYTES)]
        return pa.table([pa.array(hashes, pa.binary(_HASH_BYTES))], schema=TOMBSTONES)


def salted(salt: str, keys: Keys) -> NDArray[np.bytes_]:
    """Return the salted hashes of keys."""
    content, start = keys.tobytes(), bytes.fromhex(salt)
    hashes = (
        hashlib.sha256(start + content[at : at + _KEY_BYTES]).digest() for at in range(0, len(content), _KEY_BYTES)
    )
    return np.frombuffer(b"".join(hashes), dtype=f"S{_HASH_BYTES}")

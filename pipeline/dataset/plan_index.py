"""The index of earlier plans: their documents, ids and rejects in a few objects, so that a night need not read every plan.

An object of the index describes some plans. It is derived from them, may be deleted at any time, and is never changed:
a larger object replaces several smaller ones. Each plan has one row for each of its ids, for each row rejected while
planning, and for each row that its published rejects name. Its document is in the footer, compressed with zlib.
"""

from __future__ import annotations

import io
import json
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.plan import Plan, plan_of
from pipeline.layout import INDEX_FILE, index_key
from pipeline.manifest.hash_buckets import Keys, as_keys
from pipeline.storage.documents import FORMAT
from pipeline.storage.store import Store
from pipeline.storage.temporary import naming_full_disk

ID, REFUSED, REJECTED = 0, 1, 2
"""Kinds of rows: an id of the plan, a row rejected while planning (see `reject_keys`), an id in its published rejects."""
MOST_ROWS = 2**21
"""Most rows of one object: 32 MiB of keys."""

_PLANS = b"speech_emotion.plans"
_SCHEMA = pa.schema(
    [("key", pa.binary(16)), ("plan", pa.int32()), ("kind", pa.int8()), ("reason", pa.string())]  # reason: of REJECTED
)
_ROW_GROUP_ROWS = 262_144


@dataclass(frozen=True, slots=True)
class Results:
    """Statements of the results of a plan, and the files that stated it.

    Attributes:
        rejects_bytes: size of its published rejects, whose ids the index has; None without any.
        report_bytes: size of its report; None without any.
        attempt: key of the note of its last failed attempt.
        rejected: number of rejects in its report.
        page: the report's `page`: False when the page was disabled.
    """

    rejects_bytes: int | None = None
    report_bytes: int | None = None
    attempt: str | None = None
    rejected: int = 0
    page: bool | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One plan in the index, and what its results stated when it was indexed."""

    plan: Plan
    results: Results


@dataclass
class Segment:
    """One object of the index, copied to an unnamed file below TMPDIR.

    Attributes:
        entries: the plans it describes, by name; those that are not trusted are removed.
    """

    file: BinaryIO
    rows: int
    entries: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def tables(self, kinds: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the rows of some kinds, of its entries only, in batches."""
        trusted = _mask([int(name) for name in self.entries])
        with pq.ParquetFile(self.file, page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches():
                plans, kind = batch["plan"].to_numpy(), batch["kind"].to_numpy()
                wanted = trusted[np.minimum(plans, len(trusted) - 1)] & np.isin(kind, kinds)
                if wanted.any():
                    yield pa.table(batch).filter(pa.array(wanted))


def keys_of(rows: pa.Table) -> Keys:
    """Return the keys of rows of the index."""
    width = _SCHEMA.field("key").type.byte_width
    pieces = (
        chunk.buffers()[1].slice(width * chunk.offset, width * len(chunk)).to_pybytes() for chunk in rows["key"].chunks
    )
    return as_keys(b"".join(pieces))


def index_rows(plan: Plan, kind: int, keys: Keys, reasons: Sequence[str] | None = None) -> pa.Table:
    """Return rows of the index for keys of one plan."""
    buffer = pa.py_buffer(keys.tobytes())
    columns = [
        pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer]),
        pa.array(np.full(len(keys), int(plan.plan), np.int32)),
        pa.array(np.full(len(keys), kind, np.int8)),
        pa.nulls(len(keys), pa.string()) if reasons is None else pa.array(reasons, pa.string()),
    ]
    return pa.table(columns, schema=_SCHEMA)


def write_segment(store: Store, entries: Mapping[str, Entry], rows: Sequence[pa.Table]) -> None:
    """Write an object of the index, unless one of the same plans exists."""
    named = {
        name: {"document": entry.plan.document(), "results": asdict(entry.results)} for name, entry in entries.items()
    }
    buffer = io.BytesIO()
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["plan", "kind", "reason"]}
    with pq.ParquetWriter(buffer, _SCHEMA, write_page_checksum=True, **options) as writer:
        writer.write_table(pa.concat_tables(rows), row_group_size=_ROW_GROUP_ROWS)
        content = json.dumps({"format": FORMAT, "plans": named}).encode()
        writer.add_key_value_metadata({_PLANS: zlib.compress(content)})
    store.put_if_absent(index_key(min(entries, key=int), max(entries, key=int)), buffer.getvalue())


def chosen_segments(keys: Sequence[str]) -> list[str]:
    """Return the objects of the index that no larger one replaces, in the order of their plans."""
    ranges = sorted(
        (int(match[1]), -int(match[2]), key) for key in keys if (match := INDEX_FILE.fullmatch(key)) is not None
    )
    chosen, end = [], 0
    for _, last, key in ranges:
        if -last > end:
            chosen.append(key)
            end = -last
    return chosen


def read_segment(store: Store, key: str) -> Segment | None:
    """Read an object of the index. Returns: None when it is damaged, deleted or of another format."""
    try:
        content = store.read(key)
    except FileNotFoundError:
        return None
    with naming_full_disk(Path(tempfile.gettempdir()) / "index"):
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed with the segment
        file.write(content)
        file.flush()
    try:
        segment = _parsed(file)
    except (
        OSError,
        pa.ArrowException,
        zlib.error,
        KeyError,
        TypeError,
        ValueError,
    ):  # a checksum that differs is an OSError
        segment = None
    if segment is None:
        file.close()
    return segment


def _parsed(file: BinaryIO) -> Segment | None:
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        content = json.loads(zlib.decompress(parquet.metadata.metadata[_PLANS]))
        if content["format"] != FORMAT or parquet.schema_arrow.remove_metadata() != _SCHEMA:
            return None
        entries = {
            name: Entry(plan_of(each["document"]), Results(**each["results"]))
            for name, each in content["plans"].items()
        }
        counts = np.zeros((2, max(map(int, entries)) + 1), dtype=np.int64)
        for batch in parquet.iter_batches():  # all columns, so that every page is checked
            for kind in (ID, REFUSED):
                of_kind = batch["plan"].to_numpy()[batch["kind"].to_numpy() == kind]
                counts[kind] += np.bincount(of_kind, minlength=counts.shape[1])
        rows = parquet.metadata.num_rows
    whole = {
        name: entry
        for name, entry in entries.items()
        if (entry.plan.plan, entry.plan.rows, entry.plan.rejects) == (name, *counts[:, int(name)].tolist())
    }
    return Segment(file, rows, whole)


def _mask(numbers: Sequence[int]) -> NDArray[np.bool_]:
    mask = np.zeros(max(numbers, default=0) + 2, dtype=bool)
    mask[list(numbers)] = True
    return mask

"""Checked reading of plans for an audit: every field is validated, one shard is in memory at a time, ids are on disk."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.parts import partition_folder
from pipeline.dataset.plan import Plan, Shard, plan_of
from pipeline.dataset.verify.reading import UNREADABLE, DamagedFile, document, parquet
from pipeline.layout import part_key, plan_key, shards_folder
from pipeline.manifest.hash_buckets import HashBuckets, Keys, id_keys, repeated
from pipeline.schema import EMBEDDINGS, ROW_SCHEMA
from pipeline.storage.store import Store

_ROW_COLUMNS = ("recording_id", "manifest", "line")


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard as planned.

    Attributes:
        rows: its rows, with every column or only `recording_id`, `manifest`, `line` and the partition columns.
        key: key that its part should have; None if all rows were erased, and with them the partition values.
    """

    shard: Shard
    rows: pa.Table
    key: str | None


def sound_plan(store: Store, name: str) -> Plan:
    """Read a plan and validate every field.

    Raises: DamagedFile; ConfigError when the store does not answer.
    """
    content = document(store, plan_key(name))
    try:
        plan = plan_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"cannot be read: {type(error).__name__} {error}") from error
    fault = next(_faults(plan, name), None)
    if fault is not None:
        raise DamagedFile(f"cannot be read: {fault}")
    return plan


def _faults(plan: Plan, name: str) -> Iterator[str]:
    """Yield the faults of a plan's fields; the caller uses only the first, since later checks rely on earlier ones."""
    if plan.plan != name:
        yield f"it has the name {plan.plan!r}"
    named = [file for file, _ in plan.files] + [plan.rejects_file] * (plan.rejects_file is not None)
    if not all(
        isinstance(file, str) and file.startswith(f"{shards_folder(name)}/") and ".." not in file for file in named
    ):
        yield "it names files outside its own folder"
    counts = [
        *(count for _, count in plan.files),
        plan.rows,
        plan.rejects,
        *plan.excluded.values(),
        *plan.retries.values(),
        *plan.erased.values(),
    ]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        yield "a count is not a whole number"
    if bool(plan.rejects) != (plan.rejects_file is not None):
        yield f"it counts {plan.rejects} rejects, but names {plan.rejects_file or 'no rejects file'}"
    widths = plan.embedding_widths
    if not (
        isinstance(widths, Mapping)
        and set(widths) <= set(EMBEDDINGS)
        and all(isinstance(width, int) and width > 0 for width in widths.values())
    ):
        yield "its embedding names are unknown"
    try:
        columns = {*plan.extra.names, "language"}
    except (*UNREADABLE, TypeError) as error:
        yield f"its column types cannot be read ({type(error).__name__})"
        return
    partition_by = plan.settings.partition_by
    if plan.erasure is None and not set(partition_by) <= columns:
        yield f"it has no columns {', '.join(partition_by)} to partition by"
    elif any(pa.types.is_nested(field.type) for field in plan.extra if field.name in partition_by):
        yield f"columns {', '.join(partition_by)} cannot be used as folder names"


def planned_shards(store: Store, plan: Plan, file_number: int, *, deep: bool) -> Iterator[PlannedShard]:
    """Yield the shards of one file of the plan, in order. Raises: DamagedFile, possibly after some shards."""
    file, count = plan.files[file_number]
    first = sum(others for _, others in plan.files[:file_number])
    partition_by = plan.settings.partition_by
    columns = None if deep else list(dict.fromkeys((*_ROW_COLUMNS, *partition_by)))
    with parquet(store, file) as parquet_file:
        if parquet_file.num_row_groups != count:
            raise DamagedFile(f"holds {parquet_file.num_row_groups} shards, but the plan states {count}")
        if not parquet_file.schema.equals(pa.schema([*ROW_SCHEMA, *plan.extra])):
            raise DamagedFile("has other columns than the plan")
        for row_group in range(count):
            shard = Shard(plan.plan, first + row_group, file, row_group)
            rows = parquet_file.row_group(row_group, columns)
            values = dict.fromkeys(zip(*(rows[name].to_pylist() for name in partition_by), strict=True))
            folders = {partition_folder(partition_by, row) for row in values} if partition_by else {""}
            if not rows.num_rows and plan.erased:
                yield PlannedShard(shard, rows, None)
                continue
            if len(folders) != 1:
                raise DamagedFile(f"mixes {len(folders)} partitions in shard {shard.name}")
            yield PlannedShard(shard, rows, part_key(shard.name, folders.pop()))


@dataclass(frozen=True, slots=True)
class Repeated:
    """Ids that two plans, or one plan twice, have.

    Attributes:
        first: the plan that has them first.
        shard, row: a row of the later plan with such an id.
        count: number of such ids.
        rejected: whether the first plan rejected them; it is then a plan before the later one.
    """

    first: str
    shard: Shard
    row: int
    count: int
    rejected: bool


class IdLedger:
    """The ids of all plans as hash buckets on disk below `folder`. Memory: 8 bytes per reject of a part."""

    def __init__(self, folder: Path) -> None:
        self._buckets = HashBuckets(folder / "ids")
        self._shards: list[Shard] = []
        self._starts: list[int] = []
        self._rejected = array("q")

    def add(self, planned: PlannedShard) -> Keys:
        """Record the ids of a shard. The shards come in the order of plans and numbers. Returns: the keys of the ids."""
        self._shards.append(planned.shard)
        self._starts.append(len(self._buckets))
        keys = id_keys(planned.rows["recording_id"].to_pylist())
        self._buckets.add(keys)
        return keys

    def reject(self, planned: PlannedShard, rows: Iterable[int]) -> None:
        """Record the rejected rows of a shard that was added; rows that it does not have are ignored."""
        start = self._starts[bisect_left(self._shards, _place(planned.shard), key=_place)]
        self._rejected.extend(start + row for row in rows if 0 <= row < planned.rows.num_rows)

    def repeated(self) -> Iterator[Repeated]:
        """Find ids that occur in two plans or twice in one, for each pair of neighbouring occurrences."""
        rejected = np.sort(np.array(self._rejected, dtype=np.int64))
        found: dict[tuple[str, str, bool], tuple[int, int]] = {}
        for keys, positions in self._buckets.buckets():
            twice = repeated(keys)
            owners: dict[bytes, int] = {}
            for key, position in zip(keys[twice].tolist(), positions[twice].tolist(), strict=True):
                if key in owners:
                    first, later = (self._shards[self._shard_at(each)].plan for each in (owners[key], position))
                    free = first != later and _contains(rejected, owners[key])
                    example, count = found.get((first, later, free), (position, 0))
                    found[first, later, free] = (min(example, position), count + 1)
                owners[key] = position
        for (first, _, free), (position, count) in found.items():
            number = self._shard_at(position)
            yield Repeated(first, self._shards[number], position - self._starts[number], count, free)

    def _shard_at(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1


def _place(shard: Shard) -> tuple[int, int]:
    return int(shard.plan), shard.number


def _contains(ordered: NDArray[np.int64], value: int) -> bool:
    at = int(np.searchsorted(ordered, value))
    return at < len(ordered) and int(ordered[at]) == value

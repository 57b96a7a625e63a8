"""Checks of one part against its shard: location, receipt, schema and every id; with `deep` every value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.parts import Receipt, ids_sha256, part_schema, receipt_of
from pipeline.dataset.plan import Plan
from pipeline.dataset.verify.invariants import Invariant, Violation
from pipeline.dataset.verify.plans import PlannedShard
from pipeline.dataset.verify.reading import UNREADABLE, DamagedFile, ParquetReader, parquet
from pipeline.dataset.verify.rows import RowFaults
from pipeline.schema import utterance_id
from pipeline.storage.store import Store

ID_COLUMNS = ("recording_id", "segment_index", "utterance_id")
Broken = Callable[[Invariant, str], None]


@dataclass(frozen=True, slots=True)
class Inspected:
    """The result of inspecting one part.

    Attributes:
        receipt: None when it is missing or belongs to another shard; nothing can be counted then.
    """

    planned: PlannedShard
    receipt: Receipt | None
    violations: tuple[Violation, ...]


def inspect_part(store: Store, plan: Plan, planned: PlannedShard, key: str, *, deep: bool) -> Inspected:
    """Check one part against the plan.

    Costs: reading the footer and the id columns; with `deep` the whole file. Memory: the ids of the shard and one row group.
    """
    found: list[Violation] = []

    def broken(invariant: Invariant, sentence: str) -> None:
        found.append(Violation(invariant, key, sentence))

    if planned.key is not None and key != planned.key:
        broken(
            Invariant.PART_MISPLACED, f"is in the folder of other partition values; its rows belong in {planned.key}"
        )
    receipt = None
    try:
        with parquet(store, key, whole=deep) as file:
            receipt = _receipt(file)
            if (receipt.plan, receipt.shard) != (plan.plan, planned.shard.number):
                broken(Invariant.RECEIPT_PLACE, f"has the receipt of shard {receipt.plan}-{receipt.shard:06d}")
                return Inspected(planned, None, tuple(found))
            _check_receipt(receipt, file, plan, planned, broken)
            _check_rows(receipt, file, plan, planned, broken, deep=deep)
    except _NoReceiptError as error:
        broken(Invariant.RECEIPT_MISSING, f"is not a part of this pipeline: {error}")
    except DamagedFile as error:
        broken(Invariant.PART_UNREADABLE, str(error))
    return Inspected(planned, receipt, tuple(found))


class _NoReceiptError(Exception):
    """Raised for a Parquet file without a readable receipt."""


def _receipt(file: ParquetReader) -> Receipt:
    """Read the receipt and check the types of its fields."""
    try:
        receipt = receipt_of(file.metadata.metadata)
    except KeyError as error:
        raise _NoReceiptError("its footer has no receipt") from error
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise _NoReceiptError(f"the receipt in its footer cannot be read ({type(error).__name__})") from error
    numbers = [receipt.shard, receipt.rows, receipt.utterances, *(row for row, _ in receipt.rejects)]
    if not (all(isinstance(number, int) for number in numbers) and isinstance(receipt.audio_s, int | float)):
        raise _NoReceiptError("the receipt in its footer has values of other types")
    return receipt


def _check_receipt(receipt: Receipt, file: ParquetReader, plan: Plan, planned: PlannedShard, broken: Broken) -> None:
    rows = planned.rows.num_rows
    if receipt.rows != rows:
        broken(Invariant.RECEIPT_ROWS, f"its receipt counts {receipt.rows:,} plan rows, the shard has {rows:,}")
    if receipt.ids_sha256 != ids_sha256(planned.rows):
        broken(Invariant.RECEIPT_IDS, "its receipt is for other recording ids than the shard's")
    if receipt.config_hash != plan.config_hash:
        broken(Invariant.RECEIPT_CONFIG, "was made with other settings or models than the plan's")
    if receipt.utterances != file.metadata.num_rows:
        sentence = f"its receipt counts {receipt.utterances:,} utterances, the file has {file.metadata.num_rows:,}"
        broken(Invariant.RECEIPT_UTTERANCES, sentence)
    rejected = [row for row, _ in receipt.rejects]
    if len(set(rejected)) != len(rejected) or not all(0 <= row < rows for row in rejected):
        broken(Invariant.RECEIPT_REJECTS, "its receipt rejects a row twice, or one that the shard does not have")
    expected = part_schema(plan)
    if not file.schema.equals(expected):
        broken(Invariant.SCHEMA, f"differs from the plan in {_difference(file.schema, expected)}")


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    theirs, ours = ({field.name: field for field in schema} for schema in (found, expected))
    names = sorted({*theirs} ^ {*ours} | {name for name in {*theirs} & {*ours} if theirs[name] != ours[name]})
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names[:5])}" if names else "the order of columns"


def _check_rows(
    receipt: Receipt, file: ParquetReader, plan: Plan, planned: PlannedShard, broken: Broken, *, deep: bool
) -> None:
    """Check the ids, or with `deep` all columns, one row group at a time."""
    schema, expected = file.schema, part_schema(plan)
    if any(
        schema.get_field_index(name) < 0 or schema.field(name).type != expected.field(name).type for name in ID_COLUMNS
    ):
        return
    ids = _Ids(planned.rows["recording_id"].to_pylist())
    faults = RowFaults(plan, planned.rows) if deep and schema.equals(expected) else None
    for row_group in range(file.num_row_groups):
        rows = file.row_group(row_group, None if deep else ID_COLUMNS)
        ids.add(rows)
        if faults is not None:
            faults.add(rows)
    ids.check({row for row, _ in receipt.rejects}, broken)
    for invariant, sentence in faults.sentences() if faults is not None else ():
        broken(invariant, sentence)


class _Ids:
    """Checker of the ids of a part against those of its shard.

    When it finds no violation, utterance ids are unique in the dataset: each is made of a recording id, which belongs to one
    plan, and a segment index, which occurs once in a recording, and `utterance_id` is one to one.
    """

    def __init__(self, planned: Sequence[str]) -> None:
        self._planned = planned
        self._segments: dict[str, list[int]] = {recording: [] for recording in planned}
        self._unknown: list[str] = []
        self._misnamed: list[str] = []

    def add(self, rows: pa.Table) -> None:
        for recording, segment, name in zip(*(rows[name].to_pylist() for name in ID_COLUMNS), strict=True):
            if recording not in self._segments:
                self._unknown.append(recording)
            elif segment is not None:
                self._segments[recording].append(segment)
            if recording is None or segment is None or name != utterance_id(recording, segment):
                self._misnamed.append(name)

    def check(self, noted: set[int], broken: Broken) -> None:
        rejected = {self._planned[row] for row in noted if 0 <= row < len(self._planned)}
        lost = [recording for recording, found in self._segments.items() if not found and recording not in rejected]
        both = [recording for recording, found in self._segments.items() if found and recording in rejected]
        twice, gaps = [], []
        for recording, found in self._segments.items():
            if len(set(found)) != len(found):
                twice.append(recording)
            elif sorted(found) != list(range(len(found))):
                gaps.append(recording)
        for invariant, recordings, what in (
            (Invariant.ROW_LOST, lost, "plan rows are neither among the utterances nor among the rejects"),
            (Invariant.ROW_TWICE, both, "plan rows are among both the utterances and the rejects"),
            (Invariant.ROW_UNKNOWN, self._unknown, "utterances belong to recordings that are not in the shard"),
            (Invariant.UTTERANCE_ID, self._misnamed, "utterance ids do not match their row's recording and segment"),
            (Invariant.UTTERANCE_TWICE, twice, "recordings have duplicate utterances"),
            (Invariant.SEGMENT_GAP, gaps, "recordings have segments other than 0 to n-1"),
        ):
            if recordings:
                broken(invariant, f"{len(recordings):,} {what}, such as {recordings[0]!r}")

"""Checks of the rejects, the report and `_SUCCESS` by deriving them again from plan and receipts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.dataset.parts import Receipt
from pipeline.dataset.plan import Plan
from pipeline.dataset.verify.invariants import Invariant, Violation
from pipeline.dataset.verify.plans import PlannedShard
from pipeline.dataset.verify.reading import DamagedFile, MissingFile, parquet
from pipeline.layout import PAGE, REJECTS, REPORT, SUCCESS, rejects_key, run_key
from pipeline.manifest.hash_buckets import key_of
from pipeline.manifest.rejects import reject_schema
from pipeline.redaction import redacted, redacted_line
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store

_BATCH_ROWS = 65_536
_COLUMNS = ("recording_id", "manifest", "line", "reason", "detail", "stage", "attempts", "raw", "run_id")
"""Columns that identify a row of a rejects file."""


@dataclass
class Tally:
    """Sums over the readable parts of one plan, in shard order. Memory: 16 bytes per reject.

    Attributes:
        whole: whether every part has a valid receipt, so that the sums can be compared with the published results.
        missing: keys of the missing parts.
    """

    plan: Plan
    parts: int = 0
    utterances: int = 0
    rejects: int = 0
    audio_s: float = 0.0
    whole: bool = True
    missing: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    keys: bytearray = field(default_factory=bytearray)

    def add(self, planned: PlannedShard, receipt: Receipt | None) -> None:
        """Count a part; a part without a valid receipt makes the sums unusable."""
        self.parts += 1
        if receipt is None or any(not 0 <= row < planned.rows.num_rows for row, _ in receipt.rejects):
            self.whole = False
            return
        self.utterances += receipt.utterances
        self.audio_s += receipt.audio_s
        for row, reject in receipt.rejects:
            position = {name: planned.rows[name][row].as_py() for name in ("recording_id", "manifest", "line")}
            self._count({**position, **reject.document(), "raw": None, "run_id": self.plan.plan})

    def add_planning_rejects(self, store: Store, *, deep: bool) -> int:
        """Count the rejects of planning. Returns: their number. Raises: DamagedFile."""
        counted = 0
        if self.plan.rejects_file is not None:
            for rows in _reject_rows(store, self.plan.rejects_file, self.plan, deep=deep):
                for row in rows.to_pylist():
                    self._count({**row, "run_id": self.plan.plan})
                    counted += 1
        return counted

    def _count(self, reject: dict[str, object]) -> None:
        self.rejects += 1
        self.reasons[str(reject["reason"])] += 1
        self.keys += _key(reject)


def _key(reject: dict[str, object]) -> bytes:
    """Return the hash of a reject.

    URLs are redacted first: plans and receipts of earlier versions quote them with queries, the derived rejects do not.
    """
    detail, raw = redacted(str(reject["detail"])), reject["raw"]
    shown = {**reject, "detail": detail, "raw": raw and redacted_line(str(raw), str(reject["manifest"]))}
    return key_of(*(f"{name}={shown[name]}" for name in _COLUMNS))


def _reject_rows(store: Store, key: str, plan: Plan, *, deep: bool) -> Iterator[pa.Table]:
    """Read the columns that identify rejects; with `deep` read the others too, which verifies their checksums."""
    with parquet(store, key) as file:
        if not file.schema.equals(reject_schema(plan.extra)):
            raise DamagedFile("has other columns than rejects of its plan")
        for rows in file.batches(_BATCH_ROWS, None if deep else _COLUMNS):
            yield rows.select(_COLUMNS)


def check_published(
    store: Store, tally: Tally, seen: dict[str, str], *, unread: int, deep: bool
) -> Iterator[Violation]:
    """Check rejects, report and `_SUCCESS` of a plan against its tally.

    Args:
        seen: the plan's result files, listed before its parts.
        unread: number of shards whose plan rows could not be read.
    """
    plan = tally.plan
    report_key = run_key(plan.plan, REPORT)
    early = next((seen[name] for name in (SUCCESS, REPORT, REJECTS, PAGE) if name in seen), None)
    if early is not None and tally.missing:
        sentence = f"exists although {len(tally.missing):,} of {plan.num_shards:,} shards have no part"
        yield Violation(Invariant.PUBLISHED_EARLY, early, sentence)
        for key in tally.missing:
            yield Violation(Invariant.PART_MISSING, key, f"is missing although plan {plan.plan} is published")
    whole = tally.whole and not tally.missing and not unread
    success = SUCCESS in seen
    if success or REPORT in seen:
        yield from _check_report(store, tally, report_key, whole=whole)
    if REJECTS in seen or (success and tally.rejects):
        yield from _check_rejects(store, tally, rejects_key(plan.plan), whole=whole, deep=deep)


def _check_report(store: Store, tally: Tally, key: str, *, whole: bool) -> Iterator[Violation]:
    try:
        with reaching(store, key):
            report = json.loads(store.read(key))
    except FileNotFoundError:
        yield Violation(Invariant.REPORT_MISSING, key, f"is missing although plan {tally.plan.plan} is published")
        return
    except (ValueError, RecursionError) as error:
        yield Violation(Invariant.REPORT_UNREADABLE, key, f"cannot be read: {type(error).__name__}")
        return
    if not isinstance(report, dict):
        yield Violation(Invariant.REPORT_UNREADABLE, key, "cannot be read: it is not a report")
        return
    if not whole:
        return
    plan = tally.plan
    expected = {
        "run_id": plan.plan,
        "config_hash": plan.config_hash,
        "rows": plan.rows + plan.rejects,
        "recordings_annotated": plan.rows + plan.rejects - tally.rejects,
        "utterances": tally.utterances,
        "rejected": tally.rejects,
        "rejects_by_reason": dict(tally.reasons),
        "audio_hours": round(tally.audio_s / 3600, 6),
        "parts": tally.parts,
        **({"retried": dict(plan.retries)} if plan.retries else {}),
        **({"excluded": dict(plan.excluded)} if plan.policy else {}),
        **({"erased": sum(plan.erased.values())} if plan.erased else {}),
    }
    differing = [
        f"{name} is {report.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if report.get(name) != value
    ]
    if differing:
        yield Violation(Invariant.REPORT_COUNTS, key, f"differs from plan and receipts: {', '.join(differing)}")


def _check_rejects(store: Store, tally: Tally, key: str, *, whole: bool, deep: bool) -> Iterator[Violation]:
    found = bytearray()
    try:
        for rows in _reject_rows(store, key, tally.plan, deep=deep):
            for row in rows.to_pylist():
                found += _key(row)
    except MissingFile:
        yield Violation(Invariant.REJECTS_MISSING, key, f"is missing, although {tally.rejects:,} rows are rejected")
        return
    except DamagedFile as error:
        yield Violation(Invariant.REJECTS_UNREADABLE, key, str(error))
        return
    if not whole:
        return
    lost, surplus = _difference(tally.keys, found)
    if lost or surplus:
        sentence = f"{lost:,} rejects of plan and receipts are missing from it, and {surplus:,} in it are not from them"
        yield Violation(Invariant.REJECTS_ROWS, key, sentence)


def _difference(expected: bytearray, found: bytearray) -> tuple[int, int]:
    """Count the keys of each side that are not in the other, including repeats."""
    keys = np.frombuffer(bytes(expected + found), dtype="S16")
    signs = np.repeat([1.0, -1.0], [len(expected) // 16, len(found) // 16])
    balance = np.bincount(np.unique(keys, return_inverse=True)[1], weights=signs)
    return int(balance[balance > 0].sum()), int(-balance[balance < 0].sum())

"""The history of an output: its earlier plans, their results and ids, read in few calls however many plans there are.

Two listings say what exists. Plans come from the index (`pipeline.dataset.plan_index`); those that it lacks are read
several at once. An entry of the index is used only if the files that it was made from are in the listing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.plan import Plan, load_plan, plan_names, planned_ids, read_rejects
from pipeline.dataset.plan_index import (
    ID,
    MOST_ROWS,
    REFUSED,
    REJECTED,
    Entry,
    Results,
    Segment,
    chosen_segments,
    index_rows,
    keys_of,
    read_segment,
    write_segment,
)
from pipeline.errors import Stage
from pipeline.layout import ATTEMPTS, REJECTS, REPORT, RUNS, SUCCESS, attempts_folder, plan_name, rejects_key, run_key
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.manifest.rejects import reject_keys
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

_FEW_ROWS = 20_000
"""Most rows of a plan whose ids are read ahead; 16 of them fit into 50 MB."""
_GROWTH = 2
"""An object of the index is replaced together with its successors once they have a `_GROWTH`th of its rows."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The rows that published rejects name: keys of their ids, and the reasons. Rows rejected while planning are left out."""

    plan: Plan
    keys: Keys
    reasons: tuple[str, ...]


@dataclass
class History:
    """The history of the output in `store` at the time of construction.

    Attributes:
        sizes: size of every file below `_runs` and `rejects`, by key.
        plans: all plans, oldest first.
    """

    store: Store
    sizes: dict[str, int] = field(init=False)
    plans: list[Plan] = field(init=False)
    _segments: list[Segment] = field(init=False, default_factory=list)
    _entries: dict[str, Entry] = field(init=False, default_factory=dict)
    _attempts: dict[str, str] = field(init=False)
    _read: dict[str, Keys] = field(init=False, default_factory=dict)
    _results: dict[str, Results] = field(init=False, default_factory=dict)
    _erasures: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.sizes = {entry.key: entry.size_bytes for folder in (RUNS, REJECTS) for entry in self.store.list(folder)}
        self._attempts = {key.rpartition("/")[0]: key for key in sorted(self.sizes) if f"/{ATTEMPTS}/" in key}
        names = plan_names(self.sizes)
        for read in read_ahead(partial(read_segment, self.store), chosen_segments(list(self.sizes))):
            segment = read()
            if segment is not None:
                trusted = {name for name in segment.entries if self._trusted(segment.entries[name].plan)}
                trusted &= {*names} - {*self._entries}
                segment.entries = {name: segment.entries[name] for name in sorted(trusted)}
                self._segments.append(segment)
                self._entries |= segment.entries
        self.plans = self._load(names)
        if self._forget_erased():
            self.plans = self._load(names)
        self._erasures = sum(plan.erasure is not None for plan in self.plans)

    def _load(self, names: Sequence[str]) -> list[Plan]:
        missing = [name for name in names if name not in self._entries]
        reads = zip(missing, read_ahead(partial(load_plan, self.store), missing), strict=True)
        loaded = {name: read() for name, read in reads}
        return [loaded[name] if name in loaded else self._entries[name].plan for name in names]

    def _forget_erased(self) -> bool:
        """Forget the entries of plans that have lost rows since they were indexed. Returns: whether there were any."""
        stale = {
            name
            for plan in self.plans
            if plan.erasure is not None
            for name in plan.erasure.plans
            if name in self._entries and plan.plan not in self._entries[name].plan.erased
        }
        for entries in (self._entries, *(segment.entries for segment in self._segments)):
            for name in stale & entries.keys():
                del entries[name]
        return bool(stale)

    def _is_erased_since(self) -> bool:
        """Return whether an erasure has begun since the history was read."""
        if sum(plan.erasure is not None for plan in self.plans) != self._erasures:
            return True
        for number in itertools.count(len(self.plans) + 1):
            try:
                plan = load_plan(self.store, plan_name(number))
            except FileNotFoundError:
                return False
            if plan.erasure is not None:
                return True
        return False

    def _trusted(self, plan: Plan) -> bool:
        """Return whether the files that a plan names exist: a plan that was written again names others."""
        return all(file in self.sizes for file in (*(file for file, _ in plan.files), plan.rejects_file) if file)

    def entry(self, plan: Plan) -> Entry | None:
        """Return the entry of the index that stands for a plan, or None."""
        return self._entries.get(plan.plan)

    def index_rows(self) -> Iterator[pa.Table]:
        """Yield the rows of the entries in the index, in batches."""
        for segment in self._segments:
            yield from segment.tables([ID, REFUSED, REJECTED])

    # -- ids

    def ids(self, plans: Sequence[Plan]) -> Iterator[tuple[Keys, NDArray[np.integer[Any]]]]:
        """Yield the ids of some plans in batches, each id with the number of its plan."""
        wanted = [int(plan.plan) for plan in plans]
        for segment in self._segments:
            for rows in segment.tables([ID]):
                numbers = rows["plan"].to_numpy()
                chosen = np.isin(numbers, wanted)
                yield keys_of(rows.filter(pa.array(chosen))), numbers[chosen]
        for plan, keys in self._unindexed(plans):
            yield keys, np.full(len(keys), int(plan.plan))

    def _unindexed(self, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Keys]]:
        """Yield the ids of the plans that the index lacks. Some are kept for `extend`, up to `MOST_ROWS` of all plans."""
        missing = [plan for plan in plans if plan.plan not in self._entries]
        yield from ((plan, self._read[plan.plan]) for plan in missing if plan.plan in self._read)
        missing = [plan for plan in missing if plan.plan not in self._read]
        few = [plan for plan in missing if plan.rows <= _FEW_ROWS]
        for plan, read in zip(few, read_ahead(self._few_ids, few), strict=True):
            keys = read()
            self._keep(plan, [keys])
            yield plan, keys
        for plan in missing:
            if plan.rows > _FEW_ROWS:
                batches = []
                for keys in planned_ids(self.store, plan):
                    yield plan, keys
                    batches += [keys] if self._has_room(plan) else []
                self._keep(plan, batches)

    def _has_room(self, plan: Plan) -> bool:
        return sum(map(len, self._read.values())) + plan.rows <= MOST_ROWS

    def _keep(self, plan: Plan, batches: Sequence[Keys]) -> None:
        if self._has_room(plan):
            self._read[plan.plan] = np.concatenate([id_keys([]), *batches])

    def _few_ids(self, plan: Plan) -> Keys:
        return np.concatenate([id_keys([]), *planned_ids(self.store, plan)])

    def refused(self, plan: Plan) -> Keys:
        """Read the keys of the rows that a plan rejected while planning."""
        table = read_rejects(self.store, plan)
        return id_keys([]) if table is None else reject_keys(table)

    def held(self, plans: Sequence[Plan]) -> tuple[Iterator[Keys], Keys]:
        """Return the ids that plans hold, read in batches, and the keys of their rejects, for `Staging.select`."""
        wanted = [int(plan.plan) for plan in plans]
        refused = [id_keys([])]
        for segment in self._segments:
            for rows in segment.tables([REFUSED]):
                refused.append(keys_of(rows.filter(pa.array(np.isin(rows["plan"].to_numpy(), wanted)))))
        missing = [plan for plan in plans if plan.plan not in self._entries and plan.rejects_file]
        refused += [read() for read in read_ahead(self.refused, missing)]
        return (keys for keys, _ in self.ids(plans)), np.concatenate(refused)

    # -- results

    def is_published(self, plan: Plan) -> bool:
        """Return whether the plan had its `_SUCCESS`."""
        return run_key(plan.plan, SUCCESS) in self.sizes

    def rejected(self, plans: Sequence[Plan]) -> Iterator[Rejected]:
        """Yield the rows that the published rejects of some plans name."""
        indexed = {plan.plan: plan for plan in plans if self.has_rejects(plan)}
        for segment in self._segments:
            for rows in segment.tables([REJECTED]):
                numbers, keys = rows["plan"].to_numpy(), keys_of(rows)
                for number in np.unique(numbers).tolist():
                    plan = indexed.get(f"{number:06d}")
                    at = np.flatnonzero(numbers == number)
                    if plan is not None:
                        yield Rejected(plan, keys[at], tuple(rows["reason"].take(pa.array(at)).to_pylist()))
        others = [plan for plan in plans if plan.plan not in indexed and rejects_key(plan.plan) in self.sizes]
        for read in read_ahead(self.read_rejected, others):
            if (found := read()) is not None:
                yield found

    def has_rejects(self, plan: Plan) -> bool:
        """Return whether the index has the ids in a plan's published rejects as they are."""
        entry = self._entries.get(plan.plan)
        return entry is not None and entry.results.rejects_bytes == self.sizes.get(rejects_key(plan.plan))

    def read_rejected(self, plan: Plan) -> Rejected | None:
        """Read the rows that a plan's published rejects name; None if there are none."""
        try:
            content = self.store.read(rejects_key(plan.plan))
        except FileNotFoundError:
            return None
        rows = pq.read_table(pa.BufferReader(content), columns=["recording_id", "reason", "stage"]).to_pylist()
        rows = [row for row in rows if row["stage"] != Stage.MANIFEST]
        return Rejected(plan, id_keys(row["recording_id"] for row in rows), tuple(row["reason"] for row in rows))

    def results(self, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Results, bool]]:
        """Yield what the reports of plans state, and whether a later attempt found that a report is outdated.

        Of a plan whose files are as they were when it was indexed, nothing is read.
        """
        others = [plan for plan in plans if not self._knows_results(plan)]
        reads = zip(others, read_ahead(self._read_results, others), strict=True)
        known = {plan.plan: read() for plan, read in reads}
        for plan in plans:
            results, outdated = known.get(plan.plan) or (self._entries[plan.plan].results, False)
            if not outdated and self.is_published(plan):
                self._results[plan.plan] = results
            yield plan, results, outdated

    def _knows_results(self, plan: Plan) -> bool:
        entry = self._entries.get(plan.plan)
        return entry is not None and self._attempts_and_report(plan) == (
            entry.results.attempt,
            entry.results.report_bytes,
        )

    def _attempts_and_report(self, plan: Plan) -> tuple[str | None, int | None]:
        return self._attempts.get(attempts_folder(plan.plan)), self.sizes.get(run_key(plan.plan, REPORT))

    def _read_results(self, plan: Plan) -> tuple[Results, bool]:
        attempt, size_bytes = self._attempts_and_report(plan)
        if not self.is_published(plan):
            return Results(), False
        note = {} if attempt is None else json.loads(self.store.read(attempt))
        suspect = note.get("report_is_outdated", False)
        report = {} if size_bytes is None else json.loads(self.store.read(run_key(plan.plan, REPORT)))
        outdated = suspect and note["failed_at"] >= report.get("finished_at", "")
        page = report.get("page")
        return Results(None, size_bytes, attempt, report.get("rejected", 0), page), outdated

    # -- growth of the index

    def extend(self) -> None:
        """Add the plans to the index whose ids were read, together with those of the last, smaller objects of it.

        Costs one GET and one PUT, or nothing. Nothing is written if an erasure has begun: it deletes the index.
        """
        known = {plan.plan: plan for plan in self.plans}
        fresh = [known[name] for name in self._read if name in known]
        count = sum(plan.rows + plan.rejects for plan in fresh)
        if not fresh or self._is_erased_since():
            return
        merged: list[Segment] = []
        for segment in reversed(self._segments):
            if segment.rows > _GROWTH * count or segment.rows + count > MOST_ROWS:
                break
            merged.append(segment)
            count += segment.rows
        plans = [entry.plan for segment in merged for entry in segment.entries.values()] + fresh
        rows = [table for segment in merged for table in segment.tables([ID, REFUSED])]
        for plan, refused in zip(fresh, read_ahead(self.refused, fresh), strict=True):
            rows += [index_rows(plan, ID, self._read[plan.plan]), index_rows(plan, REFUSED, refused())]
        for found in self.rejected([plan for plan in plans if self.is_published(plan)]):
            rows.append(index_rows(found.plan, REJECTED, found.keys, found.reasons))
        write_segment(self.store, {plan.plan: Entry(plan, self._entry_results(plan)) for plan in plans}, rows)

    def _entry_results(self, plan: Plan) -> Results:
        results = self._results.get(plan.plan, Results())
        rejects_bytes = self.sizes.get(rejects_key(plan.plan)) if self.is_published(plan) else None
        return Results(rejects_bytes, results.report_bytes, results.attempt, results.rejected, results.page)

"""Rejected rows that a new plan takes over.

A row may be taken over only if every plan that has its id is published and rejected it. The receipts of the parts prove
it; a part never changes, so a proof stays valid. The new plan states how many rows it takes over from which plan. Of two
planners that take over the same row, one writes `plan.json` first; the other then finds a plan that is not published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.dataset.history import History
from pipeline.dataset.parts import committed_parts, read_receipt
from pipeline.dataset.plan import Plan, Shard, load_plans, read_shards
from pipeline.errors import JobError, Reject
from pipeline.manifest.hash_buckets import Keys, Positions, id_keys
from pipeline.manifest.staging import Selection
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class Retriable:
    """Rejected rows that may be taken over.

    Attributes:
        keys: keys of their ids, sorted.
        owners: for each key, the newest plan that has the id.
    """

    keys: Keys = field(default_factory=lambda: id_keys([]))
    owners: tuple[str, ...] = ()

    def owners_of(self, tables: Iterable[pa.Table]) -> dict[str, int]:
        """Return the number of rows that a plan with these rows takes over, by the plan that has them now."""
        counts: Counter[str] = Counter()
        for table in tables:
            positions = _lookup(self.keys, id_keys(table["recording_id"].to_pylist()))
            counts.update(self.owners[position] for position in positions.tolist() if position >= 0)
        return dict(sorted(counts.items()))


def find_retriable(history: History, plans: Sequence[Plan], reasons: Collection[str], max_attempts: int) -> Retriable:
    """Find the rows that were rejected for one of the reasons and may be taken over.

    Costs: nothing without reasons; otherwise, of the plans whose rejects may be taken over, their ids and the footer of each
    part with such a row. Memory: 32 bytes per row that was rejected for such a reason.

    Args:
        plans: all plans, those written since `history` was read included; these count as unpublished.
        reasons: values of `Reason`.
        max_attempts: number of plans that may try a row, the first included.
    """
    candidates, holders = _candidates(history, plans, reasons, max_attempts) if reasons else (id_keys([]), set[int]())
    if not len(candidates):
        return Retriable()
    store = history.store
    tries, rejections, owners = (np.zeros(len(candidates), np.int32) for _ in range(3))
    matching = np.zeros(len(candidates), dtype=bool)
    parts = committed_parts(store, plans)
    for number, plan in enumerate(plans):
        for shard, rows, found in located(store, plan, candidates) if int(plan.plan) in holders else ():
            tries[found] += 1
            owners[found] = number
            matching[found] = False
            key = parts[plan.plan].get(shard.number)
            causes: dict[int, Reject] = {}
            if key is not None and history.is_published(plan):
                causes = dict(read_receipt(store, key).rejects)
            for row, at in zip(rows.tolist(), found.tolist(), strict=True):
                if row in causes:
                    rejections[at] += 1
                    matching[at] = str(causes[row].reason) in reasons
    free = (tries == rejections) & matching & (tries < max_attempts)
    return Retriable(candidates[free], tuple(plans[number].plan for number in owners[free].tolist()))


def _candidates(
    history: History, plans: Sequence[Plan], reasons: Collection[str], max_attempts: int
) -> tuple[Keys, set[int]]:
    """Return the keys of rows that every plan with their id rejected, once for such a reason, and the numbers of these plans.

    The published rejects decide here, so that the receipts of few parts need to be read; the receipts are the proof.
    """
    published = [plan for plan in plans if history.is_published(plan)]
    named = [id_keys([])]
    for rejected in history.rejected(published):
        named.append(rejected.keys[[reason in reasons for reason in rejected.reasons]])
    keys = np.unique(np.concatenate(named))
    if not len(keys):
        return keys, set()
    rejections, tries = np.zeros(len(keys), np.int32), np.zeros(len(keys), np.int32)
    for rejected in history.rejected(published):
        found = _lookup(keys, rejected.keys)
        rejections[found[found >= 0]] += 1
    holders: list[tuple[Positions, Positions]] = []
    for ids, numbers in history.ids(plans):
        found = _lookup(keys, ids)
        hits = np.flatnonzero(found >= 0)
        np.add.at(tries, found[hits], 1)
        holders.append((found[hits], numbers[hits].astype(np.int64)))
    free = (tries == rejections) & (tries < max_attempts)
    return keys[free], {number for found, numbers in holders for number in numbers[free[found]].tolist()}


def located(store: Store, plan: Plan, wanted: Keys) -> Iterator[tuple[Shard, Positions, Positions]]:
    """Find some ids in a plan. Yields: a shard, the rows in it with such an id, and their positions in `wanted`."""
    shards = list(plan.shards())
    for shard, rows in zip(shards, read_shards(store, shards, ["recording_id"]), strict=True):
        positions = _lookup(wanted, id_keys(rows["recording_id"].to_pylist()))
        hits = np.flatnonzero(positions >= 0)
        if len(hits):
            yield shard, hits, positions[hits]


def _lookup(keys: Keys, wanted: Keys) -> Positions:
    """Return the position of each wanted key in sorted keys, -1 for those that are not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[positions] == wanted, positions, -1)


def refuse_remaking(plan: Plan, pending: Sequence[Shard], plans: Iterable[Plan]) -> None:
    """Refuse to make lost parts of a plan again when a later plan has taken over some of its rejected rows.

    Raises: JobError, since such a row might now be annotated in both.
    """
    later = [each.plan for each in plans if plan.plan in each.retries]
    if pending and later:
        raise JobError(
            f"{len(pending):,} parts of run {plan.plan} were deleted after run {later[0]} took over some of its rejected rows; "
            "made again, they might have these rows too. Restore them from a backup, or reject their rows with "
            f"--give-up {plan.plan}"
        )


def write_plans(
    store: Store,
    plans: list[Plan],
    selection: Selection,
    write: Callable[[int, Selection], Plan | None],
    reselect: Callable[[], Selection],
) -> list[Plan]:
    """Write a selection as the next plans: one of new rows, and one of rows that are taken over.

    When another planner writes a number first, its plans are read and the rows are selected again.

    Args:
        plans: the plans of the output, to which the plans of this and other planners are added.
        write: writes rows as the plan of a number; None when that number exists.
        reselect: selects the rows again, after `plans` has changed.
    Returns: the added plans, without erasures.
    """
    known = len(plans)
    while selection:
        for rows in selection.split():
            plan = write(len(plans) + 1, rows)
            if plan is None:
                plans[:] = load_plans(store)
                selection = reselect()
                break
            plans.append(plan)
        else:
            break
    return [plan for plan in plans[known:] if plan.erasure is None]

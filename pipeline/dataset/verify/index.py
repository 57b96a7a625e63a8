"""Comparison of the index of earlier plans (`pipeline.dataset.plan_index`) with the plans and results that it repeats.

An entry that disagrees would make the next job skip rows that no plan holds, or annotate rows twice. Memory does not depend on
the number of ids: they are compared by their count and the sum of their hashes. Damaged objects of the index are not reported:
jobs ignore them, and read the plans instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dataset.history import History
from pipeline.dataset.plan import Plan
from pipeline.dataset.plan_index import ID, REFUSED, REJECTED, keys_of
from pipeline.dataset.verify.invariants import Invariant, Violation
from pipeline.dataset.verify.reading import UNREADABLE
from pipeline.layout import INDEX
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store

_BITS = 128
_NAMES = {ID: "ids", REFUSED: "rejects of planning", REJECTED: "rejects of the run"}


@dataclass
class KeySum:
    """The number of keys and their sum, which do not depend on the order of the keys."""

    count: int = 0
    total: int = 0

    def add(self, keys: Keys) -> KeySum:
        """Add keys. Returns: itself."""
        halves = np.ascontiguousarray(keys).view("<u8").reshape(-1, 2)
        # each half is split again, so that a sum of 2**32 keys cannot overflow
        low, high = (halves & np.uint64(0xFFFFFFFF)).sum(axis=0), (halves >> np.uint64(32)).sum(axis=0)
        parts = (int(low[0]), int(high[0]), int(low[1]), int(high[1]))
        self.count += len(keys)
        self.total = (self.total + sum(part << 32 * place for place, part in enumerate(parts))) % 2**_BITS
        return self


def check_index(store: Store, plans: Sequence[Plan], ids: Mapping[str, KeySum]) -> Iterator[Violation]:
    """Compare the entries that a job would use.

    Args:
        plans: all plans of the output.
        ids: the ids of each plan, by its name.
    """
    with reaching(store, INDEX):
        history = History(store)
        stated = _stated(history.index_rows())
    for plan in plans:
        entry = history.entry(plan)
        if entry is None:
            continue
        wrong = ["document"] if entry.plan.document() != plan.document() else []
        wrong += [_NAMES[kind] for kind, keys in _actual(history, plan, ids) if stated[plan.plan, kind] != keys]
        if wrong:
            sentence = (
                f"differs from plan {plan.plan} in {' and '.join(wrong)}; the index is derived: delete it, and the next job "
                "writes it again"
            )
            yield Violation(Invariant.INDEX, INDEX, sentence)


def _stated(tables: Iterable[pa.Table]) -> Mapping[tuple[str, int], KeySum]:
    """Return the keys in the index by plan and kind; those of rejects include the reason."""
    sums: defaultdict[tuple[str, int], KeySum] = defaultdict(KeySum)
    for rows in tables:
        numbers, kinds, keys = rows["plan"].to_numpy(), rows["kind"].to_numpy(), keys_of(rows)
        for number, kind in {*zip(numbers.tolist(), kinds.tolist(), strict=True)}:
            at = np.flatnonzero((numbers == number) & (kinds == kind))
            chosen = keys[at]
            if kind == REJECTED:
                chosen = _with_reasons(chosen, rows["reason"].take(pa.array(at)).to_pylist())
            sums[f"{number:06d}", kind].add(chosen)
    return sums


def _actual(history: History, plan: Plan, ids: Mapping[str, KeySum]) -> Iterator[tuple[int, KeySum]]:
    """Yield the keys of a plan and its results, by kind; files that cannot be read have violations of their own."""
    yield ID, ids[plan.plan]
    try:
        yield REFUSED, KeySum().add(history.refused(plan))
        if history.has_rejects(plan) and (rejected := history.read_rejected(plan)) is not None:
            yield REJECTED, KeySum().add(_with_reasons(rejected.keys, rejected.reasons))
    except UNREADABLE:
        return


def _with_reasons(keys: Keys, reasons: Sequence[str | None]) -> Keys:
    return id_keys(f"{key.hex()} {reason}" for key, reason in zip(keys.tolist(), reasons, strict=True))

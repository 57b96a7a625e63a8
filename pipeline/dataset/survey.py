"""The state of an output's plans, from three listings: unpublished plans, deleted parts or results, missing pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, Shard
from pipeline.layout import PAGE, REJECTS, REPORT, RUNS, SUCCESS, rejects_key, run_key
from pipeline.storage.access import without_query
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class PlanState:
    """The progress of one plan.

    Attributes:
        parts: shard number to the key of its part.
        published: whether its `_SUCCESS` exists.
        lost: the missing files of a published plan, for a message; empty when none is missing.
        drawn: whether its page exists or was disabled.
    """

    plan: Plan
    parts: Mapping[int, str]
    published: bool
    lost: str
    drawn: bool

    @property
    def whole(self) -> bool:
        """Return whether the plan is published and complete."""
        return self.published and not self.lost

    @property
    def missing(self) -> int:
        """Return the number of shards that have no part."""
        return sum(number not in self.parts for number in range(self.plan.num_shards))


def pending_shards(store: Store, plan: Plan) -> list[Shard]:
    """Return the shards of a plan that have no part. Costs one listing."""
    parts = committed_parts(store, [plan])[plan.plan]
    return [shard for shard in plan.shards() if shard.number not in parts]


def survey(store: Store, plans: Sequence[Plan], out: TextIO) -> list[PlanState]:
    """Return the state of each plan, and warn on `out` about missing files of published plans.

    Costs three listings, and a small GET for some plans; nothing when there are no plans.
    """
    if not plans:
        return []
    results = {entry.key for prefix in (RUNS, REJECTS) for entry in store.list(prefix)}
    parts = committed_parts(store, plans)
    states = [_state(store, plan, parts[plan.plan], results) for plan in plans]
    for state in states:
        if state.lost:
            print(
                f"warning: run {state.plan.plan} was published, but {state.lost} below {without_query(store.root)} are missing "
                "now; they are made again. python -m jobs.verify checks the whole output",
                file=out,
            )
    return states


def _state(store: Store, plan: Plan, parts: Mapping[int, str], results: set[str]) -> PlanState:
    success, page, report = (run_key(plan.plan, name) for name in (SUCCESS, PAGE, REPORT))
    published, rejects = success in results, rejects_key(plan.plan)
    state = PlanState(plan, parts, published, "", page in results)
    if not published:
        return state
    said = {}
    if report in results and not {page, rejects} <= results:
        said = json.loads(store.read(report))
    lost = f"{state.missing:,} of {plan.num_shards:,} parts" if state.missing else ""
    if report not in results:
        lost = lost or report
    if rejects not in results and (plan.rejects or said.get("rejected")):
        lost = lost or rejects
    return PlanState(plan, parts, published, lost, state.drawn or said.get("page") is False)

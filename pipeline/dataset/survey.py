"""The state of an output's plans, from listings: unpublished plans, deleted parts or results, missing pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TextIO

from pipeline.dataset.history import History
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.plan_index import Results
from pipeline.layout import PAGE, REPORT, rejects_key, run_key
from pipeline.redaction import without_query
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class PlanState:
    """The progress of one plan.

    Attributes:
        parts: shard number to the key of its part.
        published: whether its `_SUCCESS` exists.
        lost: the missing files of a published plan, for a message; empty when none is missing.
        outdated: whether an earlier job found that the report does not describe the parts, and no report was derived since.
        drawn: whether its page exists or was disabled.
    """

    plan: Plan
    parts: Mapping[int, str]
    published: bool
    lost: str
    drawn: bool
    outdated: bool = False

    @property
    def whole(self) -> bool:
        """Return whether the plan is published and complete, and its report describes its parts."""
        return self.published and not self.lost and not self.outdated

    @property
    def missing(self) -> int:
        """Return the number of shards that have no part."""
        return sum(number not in self.parts for number in range(self.plan.num_shards))


def pending_shards(store: Store, plan: Plan) -> list[Shard]:
    """Return the shards of a plan that have no part. Costs one listing."""
    parts = committed_parts(store, [plan])[plan.plan]
    return [shard for shard in plan.shards() if shard.number not in parts]


def survey(history: History, out: TextIO) -> list[PlanState]:
    """Return the state of each plan, and warn on `out` about missing files of published plans.

    Costs a listing, and what `History.results` reads; nothing when there are no plans.
    """
    plans = [plan for plan in history.plans if plan.erasure is None]
    if not plans:
        return []
    store, parts = history.store, committed_parts(history.store, plans)
    states = [
        _state(history, parts[plan.plan], plan, stated, outdated=outdated)
        for plan, stated, outdated in history.results(plans)
    ]
    for state in states:
        if state.lost:
            print(
                f"warning: run {state.plan.plan} was published, but {state.lost} below {without_query(store.root)} are missing "
                "now; they are made again. python -m jobs.verify checks the whole output",
                file=out,
            )
    return states


def _state(history: History, parts: Mapping[int, str], plan: Plan, stated: Results, *, outdated: bool) -> PlanState:
    page, report, rejects = run_key(plan.plan, PAGE), run_key(plan.plan, REPORT), rejects_key(plan.plan)
    state = PlanState(plan, parts, history.is_published(plan), "", page in history.sizes)
    if not state.published:
        return state
    lost = f"{state.missing:,} of {plan.num_shards:,} parts" if state.missing else ""
    if report not in history.sizes:
        lost = lost or report
    if rejects not in history.sizes and (plan.rejects or stated.rejected):
        lost = lost or rejects
    return replace(state, lost=lost, drawn=state.drawn or stated.page is False, outdated=outdated)

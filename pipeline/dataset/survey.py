"""The state of an output's plans, from three listings: unpublished plans, deleted parts or results, missing pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, Shard
from pipeline.layout import ATTEMPTS, PAGE, REJECTS, REPORT, RUNS, SUCCESS, attempts_folder, rejects_key, run_key
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


def survey(store: Store, plans: Sequence[Plan], out: TextIO) -> list[PlanState]:
    """Return the state of each plan, and warn on `out` about missing files of published plans.

    Costs three listings, and a small GET for some plans; nothing when there are no plans.
    """
    if not plans:
        return []
    results = {entry.key for prefix in (RUNS, REJECTS) for entry in store.list(prefix)}
    parts = committed_parts(store, plans)
    failed = {key.rpartition("/")[0]: key for key in sorted(results) if f"/{ATTEMPTS}/" in key}  # the last of each plan
    states = [_state(store, plan, parts[plan.plan], results, failed.get(attempts_folder(plan.plan))) for plan in plans]
    for state in states:
        if state.lost:
            print(
                f"warning: run {state.plan.plan} was published, but {state.lost} below {without_query(store.root)} are missing "
                "now; they are made again. python -m jobs.verify checks the whole output",
                file=out,
            )
    return states


def _state(store: Store, plan: Plan, parts: Mapping[int, str], results: set[str], failed: str | None) -> PlanState:
    """Return the state of one plan. Args: failed: the key of its last failed attempt."""
    success, page, report = (run_key(plan.plan, name) for name in (SUCCESS, PAGE, REPORT))
    published, rejects = success in results, rejects_key(plan.plan)
    state = PlanState(plan, parts, published, "", page in results)
    if not published:
        return state
    note = {} if failed is None else json.loads(store.read(failed))
    is_suspect = note.get("report_is_outdated", False)
    stated = {}
    if report in results and (is_suspect or not {page, rejects} <= results):
        stated = json.loads(store.read(report))
    outdated = is_suspect and note["failed_at"] >= stated.get("finished_at", "")
    lost = f"{state.missing:,} of {plan.num_shards:,} parts" if state.missing else ""
    if report not in results:
        lost = lost or report
    if rejects not in results and (plan.rejects or stated.get("rejected")):
        lost = lost or rejects
    return PlanState(plan, parts, published, lost, state.drawn or stated.get("page") is False, outdated)

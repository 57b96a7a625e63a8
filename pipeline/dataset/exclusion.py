"""Exclusion of rows by a policy, over several plans: whether unfinished plans agree with it, and messages with counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.config import JobConfig
from pipeline.dataset.plan import Plan, read_shard, read_shards
from pipeline.dataset.survey import pending_shards
from pipeline.errors import ConfigError
from pipeline.manifest.policy import Evaluator, Policy
from pipeline.manifest.staging import Selection
from pipeline.storage.store import Store


def policy_of(config: JobConfig) -> Policy:
    """Return the policy that the options of a job state. Raises: ConfigError for SQL with a syntax error."""
    policy = Policy(config.exclude, config.only, config.exclude_channel)
    policy.check()
    return policy


def require_agreement(store: Store, plans: Iterable[Plan], policy: Policy) -> None:
    """Check that the remaining rows of unfinished plans are not excluded by a policy.

    Reads the remaining rows of plans with another policy.

    Raises: ConfigError naming the plans, since finishing them would fetch excluded audio.
    """
    if not policy:
        return
    with policy.evaluator() as evaluator:
        for plan in plans:
            count = 0 if plan.policy == policy else sum(_excluded(store, plan, evaluator))
            if count:
                raise ConfigError(
                    f"run {plan.plan} is unfinished, and {count:,} of its remaining rows are excluded by the given options. "
                    "Nothing is fetched. Finish the run with the options it was planned with, or reject its remaining rows "
                    f"with --give-up {plan.plan}"
                )


def _excluded(store: Store, plan: Plan, evaluator: Evaluator) -> Iterator[int]:
    pending = pending_shards(store, plan)
    whole = plan.settings.texts == "keep"
    for rows in read_shards(store, pending) if whole else (read_shard(store, shard) for shard in pending):
        yield int(np.count_nonzero(evaluator.causes(rows)))


def exclusion_lines(selection: Selection) -> Iterator[str]:
    """Yield messages about the rows that the policy excludes, and about erased ones."""
    if selection.erased:
        yield f"{selection.erased:,} rows of the manifests were erased from this output; they are left out"
    if selection.excluded:
        yield f"{sum(selection.excluded.values()):,} rows of the manifests are excluded; their audio is not fetched"
    if selection.held_excluded:
        yield (
            f"warning: {selection.held_excluded:,} rows that the options exclude are in earlier runs, and stay there"
        )

"""Handling of plans that could not be finished: a note of each failed attempt, and the final error."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import pyarrow as pa

from pipeline.dataset.plan import Plan
from pipeline.dataset.survey import pending_shards
from pipeline.errors import ConfigError, JobError, OutdatedReportError, StuckPlansError
from pipeline.layout import attempt_key, attempts_folder
from pipeline.shard.commit import give_up
from pipeline.storage.documents import FORMAT, create_json
from pipeline.storage.retry import TRANSIENT
from pipeline.storage.store import Store

CANNOT_FINISH = (
    *(JobError, ConfigError, *TRANSIENT),
    *(ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException),
)
"""Exceptions that end the work on one plan but not on the others."""
_LONGEST_ERROR = 2000


@dataclass(frozen=True, slots=True)
class Failure:
    """One plan that could not be finished.

    Attributes:
        error: the cause of this failure.
        tries: number of attempts, including earlier ones.
        first_at: time of the first failure, in UTC.
        shards_left: number of shards without a part.
    """

    plan: Plan
    error: str
    tries: int
    first_at: str
    shards_left: int


def record_failure(store: Store, plan: Plan, error: BaseException) -> Failure:
    """Record a failed attempt as `_runs/<plan>/attempts/NNNNNN.json`, put-if-absent under the next free number.

    If the store refuses writes, nothing is recorded.
    """
    sentence = str(error) if isinstance(error, (JobError, ConfigError)) else f"{type(error).__name__}: {error}"
    token = uuid.uuid4().hex
    note: dict[str, Any] = {
        "format": FORMAT,
        "token": token,
        "failed_at": _now(),
        "error": sentence[:_LONGEST_ERROR],
        **({"report_is_outdated": True} if isinstance(error, OutdatedReportError) else {}),
    }
    tries, first_at, shards_left = 1, str(note["failed_at"]), plan.num_shards
    with contextlib.suppress(*TRANSIENT, JobError):
        shards_left = len(pending_shards(store, plan))
        keys = sorted(entry.key for entry in store.list(attempts_folder(plan.plan)))
        tries += len(keys)
        if keys:
            first_at = str(json.loads(store.read(keys[0]))["failed_at"])
        while not create_json(store, attempt_key(plan.plan, tries), note, mine=("token", token)):
            tries += 1
    return Failure(plan, sentence, tries, first_at, shards_left)


def give_up_runs(store: Store, plans: Sequence[Plan], names: Sequence[str], out: TextIO) -> None:
    """Reject the remaining rows of some plans, without publishing them. Raises: ConfigError for an unknown name."""
    named = {plan.plan: plan for plan in plans}
    if unknown := [name for name in names if name not in named]:
        raise ConfigError(f"--give-up {' '.join(unknown)}: there is no such run in {store.root}")
    for name in names:
        left = pending_shards(store, named[name])
        for shard in left:
            give_up(store, named[name], shard)
        print(f"run {name}: given up, the rows of {len(left):,} shards are rejected", file=out)


def stuck(failures: Sequence[Failure], reports: Sequence[dict[str, Any]]) -> StuckPlansError:
    """Return the error to raise at the end: the runs that could not be finished, the causes, and what to do."""
    lines = []
    for failure in failures:
        plan, tries = failure.plan, f" (try {failure.tries}, the first at {failure.first_at})" * (failure.tries > 1)
        lines.append(f"run {plan.plan} cannot be finished{tries}: {failure.error.rstrip('.')}.")
    names = " ".join(failure.plan.plan for failure in failures)
    left = sum(failure.shards_left for failure in failures)
    lines.append(
        f"Other runs are not affected. If the cause cannot be removed, --give-up {names} permanently rejects the rows of the "
        f"{left:,} remaining shard{'s' * (left != 1)}."
    )
    return StuckPlansError("\n".join(lines), reports)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

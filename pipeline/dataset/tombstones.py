"""The tombstones of an output, and the check that no erasure is unfinished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.plan import Plan
from pipeline.dataset.publish import is_published
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.store import Store


def unfinished_erasure(store: Store, plans: Sequence[Plan]) -> Plan | None:
    """Return the erasure that was interrupted or is running, or None."""
    return next((plan for plan in plans if plan.erasure is not None and not is_published(store, plan)), None)


def require_no_erasure(store: Store, plans: Sequence[Plan]) -> None:
    """Check that no erasure is unfinished. Raises: ConfigError, since its rows are then in some files of the output."""
    plan = unfinished_erasure(store, plans)
    if plan is not None:
        raise ConfigError(
            f"erasure {plan.plan} of {without_query(store.root)} is running or was interrupted. Wait for it, or finish it with "
            "jobs.erase OUT --finish"
        )


def tombstones(store: Store, plans: Sequence[Plan]) -> Tombstones:
    """Return the tombstones of all erasures. Raises: ConfigError when one is unfinished."""
    require_no_erasure(store, plans)
    erasures = [plan for plan in plans if plan.erasure is not None]
    return merged([read_tombstones(store, plan) for plan in erasures])


def read_tombstones(store: Store, plan: Plan) -> Tombstones:
    """Return the tombstones of one erasure."""
    if plan.erasure is None:
        return Tombstones()
    hashes = pq.read_table(pa.BufferReader(store.read(plan.erasure.file)))["hash"].to_pylist()
    return Tombstones(plan.erasure.salt, np.frombuffer(b"".join(hashes), dtype="S32"))


def merged(many: Sequence[Tombstones]) -> Tombstones:
    """Return the union of tombstones with one salt."""
    if not many:
        return Tombstones()
    return Tombstones(many[0].salt, np.concatenate([each._hashes for each in many]))

"""The protocol of an erasure.

1. The tombstones are written, then the intent: an entry of its own in the log of plans, by put-if-absent of `plan.json`
   under the next number. A planner that selected its rows before loses the race for that number, and selects again.
2. Every file that has erased rows is replaced by one without them. Parts come before the shard file with their rows, which
   says what is left to do, and files derived from them come after it.
3. `_SUCCESS` of the entry is written.

Each step can be repeated. Between 1 and 3 no job starts on the output. Every earlier plan is published before 1, so no
writer commits rows of it, and a late writer finds that its files exist.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.config.settings import Settings
from pipeline.dataset.compatibility import dataset_settings
from pipeline.dataset.erase.choice import Chosen
from pipeline.dataset.erasures import Erasure, Tombstones, salted
from pipeline.dataset.plan import Plan, load_plans, parquet_bytes, stored_schema
from pipeline.dataset.tombstones import unfinished_erasure
from pipeline.errors import ConfigError, JobError
from pipeline.layout import SUCCESS, plan_key, plan_name, run_key, tombstones_key
from pipeline.storage import cleanup
from pipeline.storage.documents import create_json
from pipeline.storage.store import Store

_SALT_BYTES = 16


@dataclass(frozen=True)
class Changes:
    """Writer and remover of the files of an output.

    Attributes:
        before, after: called with the key before and after each change; for tests.
    """

    store: Store
    before: Callable[[str], None] = lambda _key: None
    after: Callable[[str], None] = lambda _key: None

    def create(self, key: str, content: bytes) -> None:
        """Create a file, unless it exists."""
        self.before(key)
        self.store.put_if_absent(key, content)
        self.after(key)

    def replace(self, key: str, content: bytes) -> None:
        """Replace a file."""
        self.before(key)
        cleanup.replace(self.store, key, content)
        self.after(key)

    def remove(self, key: str) -> None:
        """Delete a file, if it exists."""
        self.before(key)
        cleanup.remove(self.store, key)
        self.after(key)


def begin(changes: Changes, plans: list[Plan], chosen: Chosen, reason: str, tables: Sequence[str] = ()) -> Plan:
    """Write the tombstones and the intent. Returns: the entry.

    Args:
        plans: all plans of the output, with earlier erasures, as they were when the rows were chosen.
        tables: see `Erasure`.
    Raises: JobError when a plan was added since.
    """
    store, number, token = changes.store, len(plans) + 1, uuid.uuid4().hex[:12]
    name = plan_name(number)
    salt = next((plan.erasure.salt for plan in plans if plan.erasure), secrets.token_hex(_SALT_BYTES))
    file = tombstones_key(name, token)
    changes.create(file, parquet_bytes(Tombstones(salt, salted(salt, chosen.keys)).table()))
    entry = Plan(
        plan=name,
        token=token,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        settings=_settings(store),
        models={},
        embedding_widths={},
        manifests=(),
        files=(),
        rows=0,
        rejects=0,
        rejects_file=None,
        rows_without_text=0,
        audio_s=0.0,
        extra_schema=stored_schema(pa.schema([])),
        erasure=Erasure(reason, salt, file, chosen.plans, tuple(tables)),
    )
    changes.before(plan_key(name))
    if not create_json(store, plan_key(name), entry.document(), mine=("token", token)):
        raise JobError(
            f"another job added run {name} to {store.root} meanwhile; nothing was erased. Run the command again"
        )
    changes.after(plan_key(name))
    return entry


def _settings(store: Store) -> Settings:
    settings = dataset_settings(store)
    if settings is None:
        raise ConfigError(f"no output of this pipeline exists at {store.root}")
    return settings


def pending(store: Store) -> tuple[list[Plan], Plan | None]:
    """Return all plans of an output, and the erasure that is unfinished."""
    plans = load_plans(store)
    return plans, unfinished_erasure(store, plans)


def finish(changes: Changes, entry: Plan) -> None:
    """Mark an erasure as finished."""
    changes.create(run_key(entry.plan, SUCCESS), b"")


def without(plan: Plan, entry: Plan) -> Plan:
    """Return a plan without the counts of the rows that an erasure takes; unchanged if they are out already."""
    if entry.erasure is None or entry.plan in plan.erased:
        return plan
    lost = entry.erasure.plans[plan.plan]
    retries = {name: count - lost.retries.get(name, 0) for name, count in plan.retries.items()}
    rejects = plan.rejects - lost.rejects
    return replace(
        plan,
        rows=plan.rows - lost.rows,
        rejects=rejects,
        rejects_file=plan.rejects_file if rejects else None,
        rows_without_text=max(0, plan.rows_without_text - lost.rows_without_text),
        audio_s=max(0.0, plan.audio_s - lost.audio_s),
        retries={name: count for name, count in retries.items() if count},
        erased={**plan.erased, entry.plan: lost.rows + lost.rejects},
    )


def json_bytes(document: object) -> bytes:
    """Return a JSON document as the pipeline stores it."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()

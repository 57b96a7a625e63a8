"""Explanation of one recording: the runs that planned it, and what became of it in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.compatibility import dataset_settings
from pipeline.dataset.parts import committed_parts, read_receipt
from pipeline.dataset.plan import Plan, Shard, load_plans, read_rejects, read_shard
from pipeline.dataset.publish import is_published
from pipeline.dataset.retries import located
from pipeline.dataset.tombstones import read_tombstones
from pipeline.errors import ConfigError
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.python_values import plain_row
from pipeline.manifest.rejects import without_secrets
from pipeline.pins import pins_document
from pipeline.redaction import redacted, redacted_audio, without_query
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store

_CUT = ("segment_index", "start_s", "end_s", "truncated", "language", "emotion", "label", "confidence", "model")
"""Columns of an utterance that say how the recording was cut and labelled; texts and embeddings are left out."""


def explain(store: Store, recording_id: str) -> dict[str, Any]:
    """Return every try of a recording, oldest first, and the policies of the runs.

    Reads the ids of all plans. The result has no transcript, embedding or query string.

    Returns: `tries`, one for each run that planned the recording; `refused`, its rejects while planning; `erased`, the
        erasures that took it; `policies`, the
        conditions of the runs that excluded rows, whose ids are not recorded.
    Raises: ConfigError or JobError when the output cannot be read.
    """
    with reaching(store):
        plans = load_plans(store)
        if not plans and dataset_settings(store) is None:
            raise ConfigError(f"no output of this pipeline exists at {without_query(store.root)}")
        parts = committed_parts(store, plans)
        wanted = id_keys([recording_id])
        tries: list[dict[str, Any]] = []
        for plan in plans:
            for shard, rows, _ in located(store, plan, wanted):
                earlier = [each["run"] for each in tries if each["run"] in plan.retries]
                part = parts[plan.plan].get(shard.number)
                tries += [{**_try(store, plan, shard, row, part), "retries": earlier} for row in rows.tolist()]
        refused = [row for plan in plans for row in _refused(store, plan, recording_id)]
        erased = [
            {"run": plan.plan, "at": plan.created_at, "reason": plan.erasure.reason}
            for plan in plans
            if plan.erasure is not None and read_tombstones(store, plan).matches(wanted).any()
        ]
    policies = [
        {"run": plan.plan, **plan.policy.shown(), "excluded": dict(plan.excluded)} for plan in plans if plan.policy
    ]
    return {"recording_id": recording_id, "tries": tries, "refused": refused, "erased": erased, "policies": policies}


def _try(store: Store, plan: Plan, shard: Shard, row: int, part: str | None) -> dict[str, Any]:
    planned = plain_row(read_shard(store, shard), row)
    recording_id, audio, manifest = (str(planned.pop(name) or "") for name in ("recording_id", "audio", "manifest"))
    planned.pop("text")
    return {
        "run": plan.plan,
        "planned_at": plan.created_at,
        "published": is_published(store, plan),
        "manifest": without_query(manifest),
        "line": planned.pop("line"),
        "audio": redacted_audio(audio, manifest),
        "columns": json.loads(redacted(json.dumps(planned, default=str))),
        "settings": plan.settings.document(),
        "config_hash": plan.config_hash,
        "models": pins_document(plan.models),
        "part": part,
        **({"outcome": "pending"} if part is None else _outcome(store, part, row, recording_id)),
    }


def _outcome(store: Store, part: str, row: int, recording_id: str) -> dict[str, Any]:
    receipt = read_receipt(store, part)
    made = {"attempt": receipt.attempt, "versions": dict(receipt.versions)}
    reject = dict(receipt.rejects).get(row)
    if reject is not None:
        return {"outcome": "rejected", **reject.document(), **made}
    with store.open(part) as file, pq.ParquetFile(file) as parquet:
        names = [name for name in _CUT if name in parquet.schema_arrow.names]
        rows = parquet.read([*names, "recording_id"])
    own = rows.filter(pc.equal(rows["recording_id"], recording_id)).select(names).sort_by("segment_index")
    return {"outcome": "annotated", "utterances": own.to_pylist(), **made}


def _refused(store: Store, plan: Plan, recording_id: str) -> Iterator[dict[str, Any]]:
    """Yield the rejects of a recording while planning."""
    rejects = read_rejects(store, plan)
    if rejects is not None:
        names = ["reason", "detail", "manifest", "line"]
        own = without_secrets(rejects.filter(pc.equal(rejects["recording_id"], recording_id))).select(names)
        for row in own.to_pylist():
            yield {"run": plan.plan, **row, "manifest": without_query(row["manifest"])}

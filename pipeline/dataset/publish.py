"""Publication of a complete plan: the rejects, the report and `_SUCCESS`, derived from the receipts of its parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.dataset.parts import Receipt, read_receipts
from pipeline.dataset.plan import Plan, parquet_bytes, read_rejects, read_shards
from pipeline.dataset.texts import remove_texts
from pipeline.errors import JobError, OutdatedReportError
from pipeline.layout import REPORT, SUCCESS, rejects_key, run_key
from pipeline.manifest.rejects import reject_schema, rejects_table, without_secrets
from pipeline.stats import MIXED, total
from pipeline.storage.store import Store

_DERIVED = ("rows", "utterances", "rejected", "rejects_by_reason")
"""Report fields that depend on the parts alone."""


def is_published(store: Store, plan: Plan) -> bool:
    """Return whether the plan is complete and its rejects and report are written."""
    try:
        store.read(run_key(plan.plan, SUCCESS))
    except FileNotFoundError:
        return False
    return True


def publish(store: Store, plan: Plan, parts: Mapping[int, str], report: Mapping[str, Any]) -> dict[str, Any]:
    """Derive `rejects/<plan>.parquet`, `report.json` and `_SUCCESS` from the footers.

    Safe to repeat and to run concurrently: existing objects are kept.

    Returns: the published report.
    Raises: JobError when the receipts do not add up to the plan, in which case nothing is published; OutdatedReportError
        when an earlier report differs because parts were deleted and made again since.
    """
    receipts = list(read_receipts(store, parts))
    counted = sum(r.rows for r in receipts)
    foreign = [r.shard for r in receipts if r.config_hash != plan.config_hash]
    misplaced = [
        r.shard for r, shard in zip(receipts, sorted(parts), strict=True) if (r.plan, r.shard) != (plan.plan, shard)
    ]
    if len(receipts) != plan.num_shards or counted != plan.rows or foreign or misplaced:
        raise JobError(
            f"plan {plan.plan} does not add up: {len(receipts)} of {plan.num_shards} parts, {counted} of {plan.rows} rows, "
            f"{len(foreign)} parts of another configuration, {len(misplaced)} parts under another shard's name. Nothing is "
            "published; python -m jobs.verify lists the differences"
        )
    rejects = _derive_rejects(store, plan, receipts)
    report_at, rejects_at = run_key(plan.plan, REPORT), rejects_key(plan.plan)
    if rejects.num_rows:
        store.put_if_absent(rejects_at, parquet_bytes(rejects))
    derived = totals(plan, receipts, rejects)
    store.put_if_absent(report_at, json.dumps({**report, **derived}, indent=1, ensure_ascii=False).encode())
    published: dict[str, Any] = json.loads(store.read(report_at))
    if any(published.get(name) != derived[name] for name in _DERIVED):
        raise OutdatedReportError(
            f"run {plan.plan} is complete, but its report and rejects describe other parts, since deleted and made again with "
            f"another outcome. Delete {run_key(plan.plan, SUCCESS)}, {report_at}, {rejects_at} and the page below "
            f"{store.root}, and run the same command again to derive them. python -m jobs.verify lists the differences"
        )
    if plan.settings.texts != "keep":
        remove_texts(store, plan.files)
    store.put_if_absent(run_key(plan.plan, SUCCESS), b"")
    return published


def _derive_rejects(store: Store, plan: Plan, receipts: Sequence[Receipt]) -> pa.Table:
    tables = [pa.Table.from_pylist([], schema=reject_schema(plan.extra))]
    refused = read_rejects(store, plan)
    if refused is not None:
        run_ids = pa.array([plan.plan] * refused.num_rows, pa.string())
        tables.append(
            without_secrets(refused).set_column(
                refused.schema.get_field_index("run_id"), tables[0].schema.field("run_id"), run_ids
            )
        )
    shards = {shard.number: shard for shard in plan.shards()}
    rejecting = [receipt for receipt in receipts if receipt.rejects]
    planned = read_shards(store, [shards[receipt.shard] for receipt in rejecting])
    for receipt, rows in zip(rejecting, planned, strict=True):
        positions, rejects = zip(*receipt.rejects, strict=True)
        tables.append(rejects_table(rows.take(list(positions)), rejects, run_id=plan.plan))
    return pa.concat_tables(tables)


def totals(plan: Plan, receipts: Sequence[Receipt], rejects: pa.Table) -> dict[str, Any]:
    """Return counts and sums over the receipts, for the report."""
    reasons = Counter(rejects["reason"].to_pylist())
    stages: dict[str, float] = {}
    for receipt in receipts:
        for stage, seconds in receipt.stage_s.items():
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
    figures = total(receipt.figures for receipt in receipts)
    mixed = figures.get("prepare", {}).get(MIXED, 0.0)
    return {
        "rows": plan.rows + plan.rejects,
        "recordings_annotated": plan.rows - sum(len(r.rejects) for r in receipts),
        "utterances": sum(r.utterances for r in receipts),
        "rejected": rejects.num_rows,
        "rejects_by_reason": dict(sorted(reasons.items())),
        **({"retried": dict(plan.retries)} if plan.retries else {}),
        **({"erased": sum(plan.erased.values())} if plan.erased else {}),
        **({"policy": plan.policy.shown(), "excluded": dict(plan.excluded)} if plan.policy else {}),
        "audio_hours": round(sum(r.audio_s for r in receipts) / 3600, 6),
        "stage_seconds": stages,
        "figures": figures,
        **({"rows_mixed_down": round(mixed)} if mixed else {}),
        "parts": len(receipts),
    }

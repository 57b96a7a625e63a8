"""Publication of a complete plan: the rejects, the report and `_SUCCESS`, derived from the receipts of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.dataset.parts import read_receipts
from pipeline.dataset.plan import Plan, parquet_bytes, read_rejects
from pipeline.dataset.tally import Rejects, Tally, rejected_rows
from pipeline.dataset.texts import remove_texts
from pipeline.errors import OutdatedReportError
from pipeline.layout import REPORT, SUCCESS, rejects_key, run_key
from pipeline.manifest.rejects import reject_schema, without_secrets
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
    tally = Tally.of(plan, sorted(parts), read_receipts(store, parts))
    tally.require_whole()
    rejects = _derive_rejects(store, plan, tally.rejects)
    report_at, rejects_at = run_key(plan.plan, REPORT), rejects_key(plan.plan)
    if rejects.num_rows:
        store.put_if_absent(rejects_at, parquet_bytes(rejects))
    derived = tally.document(rejects["reason"].to_pylist())
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


def _derive_rejects(store: Store, plan: Plan, rejects: dict[int, Rejects]) -> pa.Table:
    tables = [pa.Table.from_pylist([], schema=reject_schema(plan.extra))]
    refused = read_rejects(store, plan)
    if refused is not None:
        run_ids = pa.array([plan.plan] * refused.num_rows, pa.string())
        tables.append(
            without_secrets(refused).set_column(
                refused.schema.get_field_index("run_id"), tables[0].schema.field("run_id"), run_ids
            )
        )
    return pa.concat_tables([*tables, *rejected_rows(store, plan, rejects)])

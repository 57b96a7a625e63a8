"""The last step: writing a recognised shard as its part."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import primary_language
from pipeline.config.further import BY_MODEL
from pipeline.dataset.parts import (
    Receipt,
    ids_sha256,
    new_attempt,
    part_schema,
    partition_folder,
    write_part,
)
from pipeline.dataset.plan import Plan, Shard, read_shard
from pipeline.dataset.texts import written_texts
from pipeline.errors import JobError, Reason, Reject, Stage
from pipeline.layout import part_key
from pipeline.models import roles
from pipeline.redaction import without_query
from pipeline.schema import ABSTAINED, DIMENSIONS, NO_SPEECH, utterance_id
from pipeline.shard.context import Work
from pipeline.shard.work_table import is_committed_elsewhere
from pipeline.storage.retry import principal
from pipeline.storage.store import Store
from pipeline.storage.uri import common_folder

_FEW = 3
_MAX_UNFORESEEN = 0.1
"""A shard is not committed when more rows than both bounds failed in the models: the cause is then a bug or a faulty
machine, not the rows. Failures in the decoder's process (DECODER_CRASH, TIMEOUT, OUT_OF_MEMORY there) are attributed to the
file; a decoder that cannot start is a JobError."""

MAX_DENIED = 0.5
"""A shard is not committed either when more rows than `_FEW` and than this share could not be read because access was denied
or the store did not answer. The rows stay undone, so the same command with valid credentials processes them."""
NO_ACCESS = (Reason.FORBIDDEN, Reason.FETCH_FAILED)

_REMEDY = (
    "Nothing of the shard is committed. Remove the cause and run the same command again, or reject these rows with "
    "--max-reject-rate 1"
)


@dataclass(frozen=True, slots=True)
class Finished:
    """The outcome of one shard, counted by the driver."""

    plan: str
    shard: int
    won: bool
    rows: int
    utterances: int
    rejects: tuple[str, ...]
    audio_s: float
    stage_s: dict[str, float]
    figures: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def finish(
    work: Work,
    shard: Shard,
    table: pa.Table,
    stage_s: Mapping[str, float],
    *,
    figures: Mapping[str, dict[str, float]] | None = None,
    max_denied: float = MAX_DENIED,
) -> Finished:
    """Build the part of a recognised shard and commit it.

    Args:
        stage_s: seconds of the earlier stages.
        figures: measurements of the earlier stages: see `pipeline.stats`.
        max_denied: share of the rows that may be inaccessible.
    Raises: JobError when the table is not the whole shard, or when too many rows failed unexpectedly or are inaccessible.
    """
    started = time.perf_counter()
    rows = read_shard(work.store, shard)
    if is_committed_elsewhere(table):
        return Finished(shard.plan, shard.number, False, rows.num_rows, 0, (), 0.0, dict(stage_s), dict(figures or {}))
    _require_whole(shard, rows, table)
    rejects, kept = _split(table)
    _refuse_unforeseen(shard, rows, rejects, _MAX_UNFORESEEN if max_denied < 1 else 1.0)
    _refuse_denied(shard, rows, rejects, max_denied)
    utterances = _output_table(work.plan, rows, kept)
    audio_s = float(np.nansum(utterances["duration_s"].fill_null(float("nan")).to_numpy()))
    built_s = time.perf_counter() - started
    receipt = Receipt(
        plan=shard.plan,
        shard=shard.number,
        attempt=new_attempt(),
        rows=rows.num_rows,
        utterances=utterances.num_rows,
        ids_sha256=ids_sha256(rows),
        config_hash=work.plan.config_hash,
        models=work.plan.models,
        audio_s=audio_s,
        stage_s={**stage_s, "build": built_s},
        rejects=tuple(rejects.items()),
        figures=figures or {},
        versions=roles.versions(),
    )
    won = write_part(work.store, key_of(work.plan, shard, rows), utterances, receipt)
    return Finished(
        plan=shard.plan,
        shard=shard.number,
        won=won,
        rows=rows.num_rows,
        utterances=utterances.num_rows,
        rejects=tuple(str(reject.reason) for reject in rejects.values()),
        audio_s=audio_s,
        stage_s={**stage_s, "build": built_s, "commit": time.perf_counter() - started - built_s},
        figures=dict(figures or {}),
    )


def _require_whole(shard: Shard, rows: pa.Table, table: pa.Table) -> None:
    """Check that the table has every row of the shard, and each utterance once. Raises: JobError."""
    if set(table["row"].to_pylist()) != set(range(rows.num_rows)):
        raise JobError(
            f"shard {shard.name} has {len(set(table['row'].to_pylist()))} of {rows.num_rows} rows before its commit"
        )
    lines = set(zip(table["row"].to_pylist(), table["segment_index"].to_pylist(), strict=True))
    if len(lines) != table.num_rows:
        raise JobError(f"shard {shard.name} has {table.num_rows - len(lines)} repeated utterances before its commit")


def give_up(store: Store, plan: Plan, shard: Shard) -> None:
    """Commit a shard with every row rejected as GIVEN_UP; a part that already exists is kept."""
    rows = read_shard(store, shard)
    reject = Reject(Reason.GIVEN_UP, "the run was not finished, and was given up with --give-up", Stage.COMMIT)
    receipt = Receipt(
        plan=shard.plan,
        shard=shard.number,
        attempt=new_attempt(),
        rows=rows.num_rows,
        utterances=0,
        ids_sha256=ids_sha256(rows),
        config_hash=plan.config_hash,
        models=plan.models,
        audio_s=0.0,
        stage_s={},
        rejects=tuple((row, reject) for row in range(rows.num_rows)),
        versions=roles.versions(),
    )
    write_part(store, key_of(plan, shard, rows), part_schema(plan).empty_table(), receipt)


def key_of(plan: Plan, shard: Shard, rows: pa.Table) -> str:
    """Return the key of the part of a shard with these rows."""
    columns = plan.settings.partition_by
    # all rows of a shard may have been erased
    values = [rows[name][0].as_py() if rows.num_rows else None for name in columns]
    return part_key(shard.name, partition_folder(columns, values))


def _refuse_unforeseen(shard: Shard, rows: pa.Table, rejects: dict[int, Reject], max_share: float) -> None:
    failed = [
        reject
        for reject in rejects.values()
        if reject.reason == Reason.INTERNAL or (reject.reason == Reason.OUT_OF_MEMORY and reject.stage != Stage.DECODE)
    ]
    if len(failed) > max(_FEW, max_share * rows.num_rows):
        raise JobError(
            f"{len(failed)} of {rows.num_rows} rows of shard {shard.name} failed in the models, so a bug or a faulty machine is "
            f"the likely cause: {failed[0].reason}, {failed[0].detail}. {_REMEDY}"
        )


def _refuse_denied(shard: Shard, rows: pa.Table, rejects: dict[int, Reject], max_denied: float) -> None:
    denied = {row: reject for row, reject in rejects.items() if reject.reason in NO_ACCESS}
    if len(denied) <= max(_FEW, max_denied * rows.num_rows):
        return
    folder = common_folder([rows["audio"][row].as_py() for row in denied])
    first = next(iter(denied.values()))
    raise JobError(
        f"{len(denied)} of {rows.num_rows} rows of shard {shard.name} cannot be read below {folder}/ by "
        f"{principal()}: {first.reason}, {first.detail}. {_REMEDY}"
    )


def _split(table: pa.Table) -> tuple[dict[int, Reject], pa.Table]:
    """Split the table into rejects by row, in order, and the remaining utterances.

    One failed utterance rejects its whole recording: half a recording would look like a complete one.
    """
    rejects: dict[int, Reject] = {}
    for row, reject in zip(table["row"].to_pylist(), table["reject"].to_pylist(), strict=True):
        if reject is not None:
            rejects.setdefault(row, Reject.of(reject))
    mask = np.isin(table["row"].to_numpy(), list(rejects), invert=True)
    return dict(sorted(rejects.items())), table.filter(pa.array(mask))


def _output_table(plan: Plan, rows: pa.Table, kept: pa.Table) -> pa.Table:
    """Build the part's table: results beside the plan columns of their row.

    Partition columns are only in the path, as in Hive: pyarrow and pandas refuse a column that is in both.
    """
    planned = rows.take(kept["row"])
    ids = planned["recording_id"].to_pylist()
    duration_s = pc.subtract(kept["end_s"], kept["start_s"])
    least = pa.scalar(plan.settings.min_confidence or 0.0, pa.float32())
    abstained = pc.less(kept["confidence"], least).fill_null(False)
    fingerprints = {
        language: roles.fingerprint(plan.models, plan.settings, primary_language(language))
        for language in set(kept["language"].to_pylist())
        if plan.knows_language(primary_language(language))
    }
    computed = {
        # the plan keeps the whole pre-signed URI for fetching; the table must not contain it
        "audio": pa.array([uri and without_query(uri) for uri in planned["audio"].to_pylist()], pa.string()),
        "utterance_id": pa.array(
            [utterance_id(i, s) for i, s in zip(ids, kept["segment_index"].to_pylist(), strict=True)], pa.string()
        ),
        "channel": pc.coalesce(planned["channel"], kept["channel"]),
        "text": written_texts(kept["text"], plan.settings.texts),
        "duration_s": duration_s,
        "emotion": pc.if_else(abstained, None, kept["emotion"]),
        "emotion_null_reason": pc.if_else(abstained, ABSTAINED, kept["emotion_null_reason"]),
        "abstained": abstained,
        "model": pc.if_else(
            pc.equal(kept["emotion_null_reason"], NO_SPEECH).fill_null(False),
            None,
            pa.array([fingerprints.get(language) for language in kept["language"].to_pylist()], pa.string()),
        ),
        "run_id": pa.array([plan.plan] * kept.num_rows, pa.string()),
    }
    columns = []
    schema = pa.schema([_with_scale(field, kept.schema) for field in part_schema(plan)])
    for field in schema:
        if field.name in plan.extra.names:
            column = planned[field.name]
        elif field.name in computed:
            column = computed[field.name]
        elif field.name in kept.schema.names:
            column = kept[field.name]
        else:
            column = planned[field.name]
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=schema)


def _with_scale(field: pa.Field, recognised: pa.Schema) -> pa.Field:
    """Return the field of a dimension with the model's own scale in its metadata; other fields as they are."""
    if field.name == BY_MODEL:
        return field.with_type(recognised.field(BY_MODEL).type)
    if field.name not in DIMENSIONS or field.name not in recognised.names:
        return field
    return field.with_metadata({**(field.metadata or {}), **(recognised.field(field.name).metadata or {})})

"""The last step: a recognised shard becomes its part."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import primary_language
from pipeline.dataset.parts import (
    Receipt,
    RejectNote,
    ids_sha256,
    new_attempt,
    part_schema,
    partition_folder,
    write_part,
)
from pipeline.dataset.plan import Plan, Shard, read_shard
from pipeline.errors import JobError, Reason, Stage
from pipeline.layout import part_key
from pipeline.models import roles
from pipeline.schema import ABSTAINED, emotion_of, utterance_id
from pipeline.shard.context import CAUSE, Work
from pipeline.storage.access import common_folder, without_query
from pipeline.storage.retry import principal
from pipeline.storage.store import Store

_FEW = 3
_MAX_UNFORESEEN = 0.1
"""A shard of which more rows than both of these failed in the models is not committed: it is a bug or a sick machine, not a
row. What the decoder did in its own process (DECODER_CRASH, TIMEOUT, OUT_OF_MEMORY there) is the file's fault: one that
cannot start at all is a JobError."""

MAX_DENIED = 0.5
"""Nor is a shard of which more rows than both of these could not be read for want of rights or of a store that answers: the
same command, with better credentials, then finds them undone."""
NO_ACCESS = (Reason.FORBIDDEN, Reason.FETCH_FAILED)

_TAKE_THEM = (
    "Nothing of the shard is committed; put it right and start the same command again, or take them for rejects with "
    "--max-reject-rate 1"
)
DONE_ELSEWHERE = -1
"""The `row` of the one line that stands for a shard which another run has committed meanwhile."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of one shard; what the driver counts."""

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
    """Turn a recognised shard into its part and commit it.

    Args:
        stage_s, figures: what the stages before measured: see `pipeline.stats`.
        max_denied: share of the rows that may be out of reach.
    Raises: JobError when the table is not the whole shard, or when so many rows failed unforeseen, or are out of reach, that
        it is no row's fault.
    """
    started = time.perf_counter()
    rows = read_shard(work.store, shard)
    if table["row"][0].as_py() == DONE_ELSEWHERE:
        return Finished(shard.plan, shard.number, False, rows.num_rows, 0, (), 0.0, dict(stage_s), dict(figures or {}))
    if set(table["row"].to_pylist()) != set(range(rows.num_rows)):
        raise JobError(f"shard {shard.name} arrived with {len(set(table['row'].to_pylist()))} of {rows.num_rows} rows")
    lines = set(zip(table["row"].to_pylist(), table["segment_index"].to_pylist(), strict=True))
    if len(lines) != table.num_rows:
        raise JobError(f"shard {shard.name} arrived with {table.num_rows - len(lines)} utterances twice")
    notes, kept = _split(table)
    _refuse_unforeseen(shard, rows, notes, _MAX_UNFORESEEN if max_denied < 1 else 1.0)
    _refuse_denied(shard, rows, notes, max_denied)
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
        rejects=tuple(notes),
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
        rejects=tuple(note.reason for note in notes),
        audio_s=audio_s,
        stage_s={**stage_s, "build": built_s, "commit": time.perf_counter() - started - built_s},
        figures=dict(figures or {}),
    )


def give_up(store: Store, plan: Plan, shard: Shard) -> None:
    """Commit a shard with every row rejected as GIVEN_UP; a part that exists meanwhile stays."""
    rows = read_shard(store, shard)
    cause = (str(Reason.GIVEN_UP), "the run was not finished, and was given up with --give-up", str(Stage.COMMIT))
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
        rejects=tuple(RejectNote(row, *cause) for row in range(rows.num_rows)),
        versions=roles.versions(),
    )
    write_part(store, key_of(plan, shard, rows), part_schema(plan).empty_table(), receipt)


def key_of(plan: Plan, shard: Shard, rows: pa.Table) -> str:
    """Where the part of a shard with these rows lies, or will."""
    columns = plan.settings.partition_by
    return part_key(shard.name, partition_folder(columns, [rows[name][0].as_py() for name in columns]))


def _refuse_unforeseen(shard: Shard, rows: pa.Table, notes: list[RejectNote], max_share: float) -> None:
    failed = [note for note in notes if note.reason == Reason.INTERNAL
              or (note.reason == Reason.OUT_OF_MEMORY and note.stage != Stage.DECODE)]  # fmt: skip
    if len(failed) > max(_FEW, max_share * rows.num_rows):
        raise JobError(
            f"{len(failed)} of {rows.num_rows} rows of shard {shard.name} failed as a sick machine or a bug would have it: "
            f"{failed[0].reason}, {failed[0].detail}. {_TAKE_THEM}"
        )


def _refuse_denied(shard: Shard, rows: pa.Table, notes: list[RejectNote], max_denied: float) -> None:
    denied = [note for note in notes if note.reason in NO_ACCESS]
    if len(denied) <= max(_FEW, max_denied * rows.num_rows):
        return
    below = common_folder([rows["audio"][note.row].as_py() for note in denied])
    raise JobError(
        f"{len(denied)} of {rows.num_rows} rows of shard {shard.name} cannot be read below {below}/ by "
        f"{principal()}: {denied[0].reason}, {denied[0].detail}. {_TAKE_THEM}"
    )


def _split(table: pa.Table) -> tuple[list[RejectNote], pa.Table]:
    """Rows rejected as a whole, and the utterances that remain.

    One utterance that failed takes its recording with it: half a recording would look like a whole one.
    """
    notes: dict[int, RejectNote] = {}
    for line in table.select(["row", *CAUSE]).to_pylist():
        if line["reason"] is not None:
            notes.setdefault(line["row"], RejectNote(**line))
    mask = np.isin(table["row"].to_numpy(), list(notes), invert=True)
    return [notes[row] for row in sorted(notes)], table.filter(pa.array(mask))


def _output_table(plan: Plan, rows: pa.Table, kept: pa.Table) -> pa.Table:
    """The part's table: results beside the plan columns of their row.

    Partition columns stand in the path alone, as Hive has it: pyarrow and pandas refuse a folder that has them twice.
    """
    theirs = rows.take(kept["row"])
    ids = theirs["recording_id"].to_pylist()
    labels = kept["label"].to_pylist()
    duration_s = pc.subtract(kept["end_s"], kept["start_s"])
    least = pa.scalar(plan.settings.min_confidence or 0.0, pa.float32())
    abstained = pc.less(kept["confidence"], least).fill_null(False)
    emotions = [None if label is None else emotion_of(label) for label in labels]
    fingerprints = {language: roles.fingerprint(plan.models, plan.settings, primary_language(language))
                    for language in set(kept["language"].to_pylist())
                    if plan.knows_language(primary_language(language))}  # fmt: skip
    computed = {
        # the plan keeps a pre-signed URI whole to fetch it; the table must not
        "audio": pa.array([uri and without_query(uri) for uri in theirs["audio"].to_pylist()], pa.string()),
        "utterance_id": pa.array(
            [utterance_id(i, s) for i, s in zip(ids, kept["segment_index"].to_pylist(), strict=True)], pa.string()
        ),
        "duration_s": duration_s,
        "emotion": pc.if_else(abstained, None, pa.array(emotions, pa.string())),
        "emotion_null_reason": pc.if_else(abstained, ABSTAINED, kept["emotion_null_reason"]),
        "abstained": abstained,
        "model": pa.array([fingerprints.get(language) for language in kept["language"].to_pylist()], pa.string()),
        "run_id": pa.array([plan.plan] * kept.num_rows, pa.string()),
    }
    columns = []
    schema = part_schema(plan)
    for field in schema:
        if field.name in plan.extra.names:
            column = theirs[field.name]
        elif field.name in computed:
            column = computed[field.name]
        elif field.name in kept.schema.names:
            column = kept[field.name]
        else:
            column = theirs[field.name]
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=schema)

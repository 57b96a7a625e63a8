"""The rows that an erasure is to take: recordings by id, and rejects without an id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.limits import LONGEST_SPAN_S
from pipeline.dataset.erasures import ErasedRows
from pipeline.dataset.plan import Plan, read_rejects, read_shards
from pipeline.dataset.reader import Rows, asking, current_rejects, quoted
from pipeline.errors import ConfigError
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.manifest.policy import matching
from pipeline.manifest.rejects import reject_keys
from pipeline.redaction import without_query

_PLANNED = ("manifest", "line", "offset_s")
"""Columns of manifest rows that utterances lack."""
_NUMBER = "__number_of_the_reject"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows to erase, found in the plans.

    Attributes:
        keys: keys of the recording ids and of the rejects of planning that are erased.
        recordings: number of ids.
        plans: what each plan has of them; plans without any are left out.
        utterances: number of their utterances.
    """

    keys: Keys
    recordings: int
    plans: dict[str, ErasedRows]
    utterances: int


def rows_where(rows: Rows, condition: str) -> tuple[set[str], Keys]:
    """Return the ids, and the keys of rejects without an id, for which an SQL condition is true.

    The condition sees the columns of utterances, current rejects and manifest rows; a column that a row does not have is
    null. It is true of a recording if it is true of one of its utterances.

    Raises: ConfigError for SQL that cannot be evaluated, or without a column.
    """
    if not rows.plans:
        return set(), id_keys([])
    rejects = current_rejects(rows)
    lacking = [quoted(name) for name in rejects.column_names if name not in (*rows.schema().names, *_PLANNED)]
    columns = ["utterances.*", *(f"planned.{name}" for name in _PLANNED), *(f"NULL AS {name}" for name in lacking)]
    numbered = rejects.append_column(_NUMBER, pa.array(range(rejects.num_rows), pa.int64()))
    with asking(utterances=rows.utterances(), rejects=numbered, planned=rows.planned()) as connection:
        connection.execute(f"CREATE VIEW annotated AS SELECT {', '.join(columns)} FROM utterances "
                           "LEFT JOIN planned USING (recording_id)")  # fmt: skip
        every = connection.sql(
            f"SELECT *, NULL::BIGINT AS {_NUMBER} FROM annotated UNION ALL BY NAME SELECT * FROM rejects"
        )
        found = matching(every, "where", condition, ("recording_id", _NUMBER))
    ids = set(found["recording_id"].drop_null().to_pylist())
    nameless = found.filter(pc.is_null(found["recording_id"]))[_NUMBER]
    return ids, reject_keys(numbered.take(nameless))


def find(rows: Rows, ids: Iterable[str], nameless: Keys) -> Chosen:
    """Find recordings, and rejects without an id, in all plans. Reads the ids and durations of every plan."""
    wanted = set(ids)
    keys: list[Keys] = []
    found: set[str] = set()
    owners: dict[str, str] = {}
    plans: dict[str, ErasedRows] = {}
    for plan in rows.plans:
        erased, refused = _planned(rows, plan, wanted, owners), read_rejects(rows.store, plan)
        rejects = 0
        if refused is not None:
            every = reject_keys(refused)
            names = refused["recording_id"].to_pylist()
            mask = np.isin(every, nameless) | np.array([name in wanted for name in names], dtype=bool)
            found.update(wanted.intersection(names))
            rejects = int(mask.sum())
            keys.append(every[mask])
        if erased.rows or rejects:
            plans[plan.plan] = ErasedRows(
                erased.rows, rejects, erased.rows_without_text, erased.audio_s, erased.retries
            )
    found.update(owners)
    utterances = rows.utterances().count_rows(filter=pc.field("recording_id").isin(sorted(found))) if found else 0
    return Chosen(np.unique(np.concatenate([id_keys(sorted(found)), *keys])), len(found), plans, utterances)


def _planned(rows: Rows, plan: Plan, wanted: set[str], owners: dict[str, str]) -> ErasedRows:
    """Count the wanted rows of a plan, and make it their owner. Args: owners: the newest earlier plan of each id."""
    shards = list(plan.shards())
    count = without_text = 0
    audio_s, retries = 0.0, dict[str, int]()
    columns = ("recording_id", "duration_s", "text")
    names = pa.array(sorted(wanted), pa.string())
    for planned in read_shards(rows.store, shards, columns):
        hits = planned.filter(pc.is_in(planned["recording_id"], names))
        for name, duration_s, text in zip(*(hits[column].to_pylist() for column in columns), strict=True):
            count += 1
            without_text += text is None
            audio_s += min(max(duration_s or 0.0, 0.0), LONGEST_SPAN_S)
            if owners.get(name) in plan.retries:
                retries[owners[name]] = retries.get(owners[name], 0) + 1
            owners[name] = plan.plan
    without_text *= plan.settings.mode != "audio" and plan.settings.texts == "keep"
    return ErasedRows(count, 0, without_text, audio_s, retries)


def require_finished(rows: Rows) -> None:
    """Check that every plan is published. Raises: ConfigError, since a job may be running."""
    if rows.unfinished:
        raise ConfigError(
            f"run {rows.unfinished[0]} of {without_query(rows.store.root)} is not finished; its job may be running. Wait for it, "
            f"or run its command again, if need be with --give-up {rows.unfinished[0]}"
        )

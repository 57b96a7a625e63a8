"""Stop a run whose audio as a whole is missing: a disk that is not mounted would make every row a permanent reject.

A shard of which nearly every object is missing may be an accident of its own, such as one deleted folder. So the worker that
meets one looks for a sample of the whole plan before anything of the shard is committed, and stops only when that is
missing too. It is the worker that looks, since the driver's machine need not have the disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.errors import JobError, Reason, RejectedRow
from pipeline.plan import Shard, read_shard
from pipeline.refusals import rejected
from pipeline.retrying import DENIED, TRANSIENT, plain_http_errors, retried
from pipeline.roots import common_folder, without_query
from pipeline.schema import ROW_SCHEMA
from pipeline.storage import resolve
from pipeline.work import Work, needs_audio

MAX_ABSENT = 0.9
"""Share of the audio that may be missing before the run stops."""
_FEW, _MANY = 9, 90
"""Up to so few missing objects are rejects whatever their share: the whole corpus may be that small. A full sample is many."""
_SAMPLE_ROWS, _SAMPLE_SHARDS, _READERS = 100, 20, 16
_BUDGET_S = 5.0
IS_IT_THERE = (
    "Is the disk mounted, and is it the right bucket? Make the audio available and start the same command again: it resumes. "
    "If the files are gone for good, --max-reject-rate 1 makes their rows rejects."
)


def absent_reasons(rows: int) -> tuple[Reason, ...]:
    """What counts as missing audio among so many rows. A few refused names are the rows' own fault, a hundred a gateway's."""
    return (Reason.NOT_FOUND, Reason.REFUSED) if rows >= _MANY else (Reason.NOT_FOUND,)


def refuse_absent(work: Work, shard: Shard, missing: int, asked: int) -> None:
    """Raises: JobError when nearly all of the shard's audio is missing, and of the plan's.

    Args:
        missing, asked: rows of the shard whose audio is missing, and rows that need theirs.
    Costs nothing unless nearly all of the shard is missing; then 100 stats or HEADs, 16 at once.
    """
    if not missing or missing <= MAX_ABSENT * asked:
        return
    with ThreadPoolExecutor(_READERS) as pool:
        sample = [
            str(row["audio"]) for row in _sample(work, pool) if needs_audio(work, row) and row["audio"] is not None
        ]
        found = pool.map(lambda uri: _outside(work, uri) or _missing(uri), sample)
        reasons = absent_reasons(len(sample))
        absent = [uri for uri, why in zip(sample, found, strict=True) if why and why.reason in reasons]
    if len(absent) <= max(_FEW, MAX_ABSENT * len(sample)):
        return
    raise JobError(
        f"{missing} of the {asked} audio files of shard {shard.name} are missing, and so are {len(absent)} of {len(sample)} "
        f"looked for all over the run, all below {common_folder(absent)}/. {IS_IT_THERE} Nothing of the shard is committed"
    )


def _sample(work: Work, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    """About a hundred rows, spread evenly over the shards of the plan and the rows of each."""
    plan = work.plan
    # more of them where they are small
    shards = min(plan.num_shards, max(_SAMPLE_SHARDS, min(_SAMPLE_ROWS, _SAMPLE_ROWS * plan.num_shards // plan.rows)))
    chosen = [plan.shard(number * plan.num_shards // shards) for number in range(shards)]
    share = math.ceil(_SAMPLE_ROWS / shards)
    for rows in pool.map(lambda shard: read_shard(work.store, shard).select(ROW_SCHEMA.names), chosen):
        yield from rows.take(list(range(0, rows.num_rows, math.ceil(rows.num_rows / share)))).to_pylist()


def _outside(work: Work, uri: str) -> RejectedRow | None:
    """A URI that may not be opened is not looked for."""
    try:
        work.roots.check(uri)
    except RejectedRow as refused:
        return refused
    return None


def _missing(uri: str) -> RejectedRow | None:
    """Why an audio object cannot be read, or None when it may be. Costs one stat or HEAD, and seconds where nobody answers."""
    shown = without_query(uri)
    filesystem, path = resolve(uri)

    def look() -> None:
        with plain_http_errors():
            filesystem.info(path)

    try:
        retried(look, what=shown, budget_s=_BUDGET_S)
    except (*TRANSIENT, *DENIED, ValueError) as error:
        return rejected(error, filesystem, path, shown)
    return None

"""Detection of audio that is missing as a whole: an unmounted disk would make every row a permanent reject.

A shard whose objects are nearly all missing may be a local accident, such as one deleted folder. Before such a shard is
committed, its worker looks for a sample of the whole plan, and stops the run only when the sample is missing too. The
worker does this because the driver's machine need not have the disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.dataset.plan import Shard, read_shard
from pipeline.errors import JobError, Reason, Reject, RejectedRow
from pipeline.schema import ROW_SCHEMA
from pipeline.shard.context import Work
from pipeline.shard.recording import needs_audio
from pipeline.storage.filesystem import resolve
from pipeline.storage.items import container_of, display_name
from pipeline.storage.refusals import reject_of
from pipeline.storage.retry import DENIED, TRANSIENT, plain_http_errors, retried
from pipeline.storage.uri import common_folder

MAX_ABSENT = 0.9
"""Share of the audio that may be missing before the run is stopped."""
_FEW, _MANY = 9, 90
"""Up to `_FEW` missing objects are rejects whatever their share, for very small corpora; a full sample has over `_MANY`."""
_SAMPLE_ROWS, _SAMPLE_SHARDS, _READERS = 100, 20, 16
_BUDGET_S = 5.0
MISSING_AUDIO_REMEDY = (
    "Check that the disk is mounted and the bucket is the right one. Make the audio available and run the same command again "
    "to resume. If the files no longer exist, --max-reject-rate 1 rejects their rows."
)


def absent_reasons(rows: int) -> tuple[Reason, ...]:
    """Return the reasons that count as missing audio among `rows` rows.

    A few refused names are caused by the rows, a hundred by a gateway.
    """
    return (Reason.NOT_FOUND, Reason.REFUSED) if rows >= _MANY else (Reason.NOT_FOUND,)


def refuse_absent(work: Work, shard: Shard, missing: int, needed: int) -> None:
    """Stop the run when nearly all audio of the shard and of the plan is missing.

    Costs nothing unless nearly all of the shard is missing; then 100 stats or HEADs, 16 at once.

    Args:
        missing: rows of the shard whose audio is missing.
        needed: rows of the shard that need their audio.
    Raises: JobError.
    """
    if not missing or missing <= MAX_ABSENT * needed:
        return
    with ThreadPoolExecutor(_READERS) as pool:
        sample = [
            str(row["audio"]) for row in _sample(work, pool) if needs_audio(work, row) and row["audio"] is not None
        ]
        rejects = pool.map(lambda uri: _outside(work, uri) or _missing(uri), sample)
        reasons = absent_reasons(len(sample))
        absent = [uri for uri, reject in zip(sample, rejects, strict=True) if reject and reject.reason in reasons]
    if len(absent) <= max(_FEW, MAX_ABSENT * len(sample)):
        return
    raise JobError(
        f"{missing} of the {needed} audio files of shard {shard.name} are missing, and so are {len(absent)} of a sample of "
        f"{len(sample)} from the whole run, all below {common_folder(absent)}/. {MISSING_AUDIO_REMEDY} Nothing of the shard is "
        "committed"
    )


def _sample(work: Work, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    """Yield about a hundred rows, spread evenly over the shards of the plan and the rows of each shard."""
    plan = work.plan
    # more shards when they are small
    shards = min(plan.num_shards, max(_SAMPLE_SHARDS, min(_SAMPLE_ROWS, _SAMPLE_ROWS * plan.num_shards // plan.rows)))
    chosen = [plan.shard(number * plan.num_shards // shards) for number in range(shards)]
    share = math.ceil(_SAMPLE_ROWS / shards)
    for rows in pool.map(lambda shard: read_shard(work.store, shard).select(ROW_SCHEMA.names), chosen):
        yield from rows.take(list(range(0, rows.num_rows, math.ceil(rows.num_rows / share)))).to_pylist()


def _outside(work: Work, uri: str) -> Reject | None:
    """Return the reject of a URI outside the audio roots, which is not looked for, or None."""
    try:
        work.roots.check(uri)
    except RejectedRow as error:
        return error.reject
    return None


def _missing(uri: str) -> Reject | None:
    """Return why an audio object cannot be read, or None. Costs one stat or HEAD, and seconds if the store is silent."""
    display_uri = display_name(uri)
    filesystem, path = resolve(container_of(uri))

    def look() -> None:
        with plain_http_errors():
            filesystem.info(path)

    try:
        retried(look, what=display_uri, budget_s=_BUDGET_S)
    except (*TRANSIENT, *DENIED, ValueError) as error:
        return reject_of(error, filesystem, path, display_uri)
    return None

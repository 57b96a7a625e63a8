"""Limits that stop a failing run: too many rejects, too much inaccessible audio, or nearly all audio missing."""

from __future__ import annotations

from pipeline.dataset.plan import read_shard
from pipeline.engine.progress import Progress
from pipeline.errors import JobError
from pipeline.shard.commit import MAX_DENIED, Finished
from pipeline.shard.context import Work
from pipeline.shard.missing_audio import MAX_ABSENT, MISSING_AUDIO_REMEDY
from pipeline.storage.uri import common_folder

_RATE_ROWS = 100
"""Least number of rows for a meaningful reject rate."""


def check_rates(progress: Progress, work: Work, shard: Finished, max_reject_rate: float | None) -> None:
    """Stop the run when too many of its rows are rejected; committed shards are kept.

    Args:
        shard: the last finished shard.
        max_reject_rate: share of rows that may be rejected for any reason; None limits only denied access and missing audio.
    Raises: JobError.
    """
    rows, fault = progress.finished, ""
    if rows < _RATE_ROWS:
        return
    if max_reject_rate is not None and progress.rejects > max_reject_rate * rows:
        limit = f"--max-reject-rate {max_reject_rate:g}"
        fault = f"{progress.rejects:,} of {rows:,} rows are rejected, more than {limit} allows"
    elif max_reject_rate is None and progress.denied > MAX_DENIED * rows:
        fault = f"{progress.denied:,} of {rows:,} rows are rejected because access was denied, more than --max-reject-rate allows"
    elif max_reject_rate is None and progress.absent > MAX_ABSENT * rows:
        fault = f"{progress.absent:,} of {rows:,} audio files are missing. {MISSING_AUDIO_REMEDY.rstrip('.')}"
    if fault:
        audio = read_shard(work.store, work.plan.shard(shard.shard))["audio"].drop_null().to_pylist()
        reasons = ", ".join(sorted(set(shard.rejects))) or "none"
        raise JobError(
            f"{fault}; the last shard's reasons: {reasons}, below {common_folder(audio)}/. Committed shards are kept"
        )

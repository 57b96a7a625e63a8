"""Removal of files that writers left behind.

Only five kinds of files count as leftovers, all recognised by name: shard files that no plan names, the store's hidden
temporary files, the probe for conditional writes, objects of the index that a larger one replaced, and incomplete multipart
uploads. Everything else is kept: parts, plans,
rejects files, notes of failed attempts, and every file that a plan names. Folders are kept, since a writer may be about
to use one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.dataset.plan import Plan, load_plan
from pipeline.dataset.plan_index import chosen_segments
from pipeline.errors import ConfigError
from pipeline.layout import DATASET, INDEX_FILE, OURS, PLAN_FILE, PROBE, SHARD_FILE, TEMPORARY
from pipeline.redaction import without_query
from pipeline.storage.cleanup import StoredFile, Upload, abort, reaching, remove, uploads, walk
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class Leftover:
    """One file or upload that no plan names.

    Attributes:
        kind: a description for the user.
        age_s: seconds since it was written; for a planner's files, since its last file was written.
        size_bytes: None when the server does not report a size.
    """

    key: str
    kind: str
    age_s: float
    size_bytes: int | None
    upload: Upload | None = None


def find_leftovers(store: Store, *, now_s: float) -> Iterator[Leftover]:
    """Find all leftovers, of any age.

    Args:
        now_s: current time in seconds since 1970, from which ages are computed.
    Raises: ConfigError when there is no output, or when a plan cannot be read, since the files it names are then unknown.
    """
    files = [file for file in walk(store) if file.key.startswith(OURS) or file.key == DATASET]
    numbers = [match[1] for file in files if (match := PLAN_FILE.fullmatch(file.key))]
    if not numbers and DATASET not in {file.key for file in files}:
        raise ConfigError(f"no output of this pipeline exists at {without_query(store.root)}")
    plans = {number: _plan(store, number) for number in numbers}
    index = set(chosen_segments([file.key for file in files]))
    yield from _shard_files(files, plans, now_s)
    for file in files:
        if TEMPORARY.fullmatch(file.key):
            yield Leftover(file.key, "temporary of a killed writer", now_s - file.modified_s, file.size_bytes)
        elif file.key == PROBE:
            yield Leftover(file.key, "probe for conditional writes", now_s - file.modified_s, file.size_bytes)
        elif INDEX_FILE.fullmatch(file.key) and file.key not in index:
            yield Leftover(file.key, "index that a larger one replaced", now_s - file.modified_s, file.size_bytes)
    for upload in uploads(store):
        if upload.key.startswith((*OURS, DATASET)):
            age_s = now_s - upload.started_s
            yield Leftover(upload.key, "multipart upload that was never completed", age_s, upload.size_bytes, upload)


def remove_leftover(store: Store, leftover: Leftover) -> bool:
    """Delete a leftover permanently. Returns: False when a plan has named it meanwhile; it is then kept.

    Raises: ConfigError.
    """
    if leftover.upload is not None:
        abort(store, leftover.upload)
        return True
    match = SHARD_FILE.fullmatch(leftover.key)
    if match and leftover.key in _named(store, match[1]):
        return False
    remove(store, leftover.key)
    return True


def _plan(store: Store, number: str) -> Plan:
    with reaching(store):
        return load_plan(store, number)


def _named(store: Store, number: str) -> set[str]:
    try:
        plan = _plan(store, number)
    except FileNotFoundError:
        return set()
    return plan.named_files


def _shard_files(files: list[StoredFile], plans: dict[str, Plan], now_s: float) -> Iterator[Leftover]:
    """Find the files of planners that lost the race for their number, or were killed before it."""
    named = {file for plan in plans.values() for file in plan.named_files}
    found = []
    last_s: dict[tuple[str, str], float] = {}
    for file in files:
        if match := SHARD_FILE.fullmatch(
            file.key
        ):  # written by a planner, or rows with renewed signatures (`pipeline.dataset.renewal`)
            planner = (match[1], match[2])
            # a planner that is still writing also has old files
            last_s[planner] = max(last_s.get(planner, 0.0), file.modified_s)
            # the token is a second check: a file of a plan's own planner is never a leftover
            if file.key not in named and not (match[1] in plans and plans[match[1]].token == match[2]):
                found.append((file, planner))
    for file, planner in found:
        kind = (
            f"shards of a planner that lost plan {planner[0]}"
            if planner[0] in plans
            else "shards of a plan that was never written"
        )
        yield Leftover(file.key, kind, now_s - last_s[planner], file.size_bytes)

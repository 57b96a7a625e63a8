"""Listings of an output, taken in an order that reports no false violation while a job is running.

Results are listed before parts, and parts before plans. A running job writes plans first, then parts, then results, so each
listing contains at least the files that the listing before it depends on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.layout import (
    ATTEMPTS,
    PART,
    PLAN,
    REJECTS,
    REJECTS_FILE,
    RESULTS,
    RUN_FILE,
    RUNS,
    SHARDS,
    TEMPORARY,
    UTTERANCES,
    plan_name,
)
from pipeline.storage.cleanup import StoredFile, walk
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class Outline:
    """The files of an output by kind. Memory: the names of all parts.

    Attributes:
        plans: names of the plans that have a `plan.json`, in order.
        parts: plan name and shard number to the keys of its parts; there should be one.
        published: plan name to its result files: `_SUCCESS`, `report.json`, the page, the rejects.
        strays: files among the parts and rejects whose name this pipeline does not use.
        attempts: plan name to the number of recorded failed attempts.
        shard_files: files in the plans' `shards/` folders, with sizes.
        temporaries: hidden files of writers that are running or were killed.
    """

    plans: tuple[str, ...]
    parts: dict[str, dict[int, list[str]]]
    published: dict[str, dict[str, str]]
    strays: tuple[str, ...]
    attempts: Counter[str]
    shard_files: tuple[StoredFile, ...]
    temporaries: tuple[StoredFile, ...]
    empty: bool

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Yield the gaps in the numbers of the plans, as the first and last missing name of each."""
        before = 0
        for name in self.plans:
            if int(name) > before + 1:
                yield plan_name(before + 1), plan_name(int(name) - 1)
            before = int(name)


def read_outline(store: Store) -> Outline:
    """List the output. Raises: ConfigError when it cannot be listed."""
    results = [*walk(store, RUNS), *walk(store, REJECTS)]
    utterances = list(walk(store, UTTERANCES))
    runs = list(walk(store, RUNS))
    published: dict[str, dict[str, str]] = defaultdict(dict)
    for file in results:
        if (match := RUN_FILE.fullmatch(file.key)) and match[2] in RESULTS:
            published[match[1]][match[2]] = file.key
        elif match := REJECTS_FILE.fullmatch(file.key):
            published[match[1]][REJECTS] = file.key
    plans, shard_files, attempts = set(), [], Counter[str]()
    for file in runs:
        match = RUN_FILE.fullmatch(file.key)
        if match and match[2] == PLAN:
            plans.add(match[1])
        elif match and match[2].startswith(f"{SHARDS}/") and not TEMPORARY.fullmatch(file.key):
            shard_files.append(file)
        elif match and match[2].startswith(f"{ATTEMPTS}/"):
            attempts[match[1]] += 1
    parts, strays = _sort_parts(utterances)
    for file in results:
        if file.key.startswith(f"{REJECTS}/") and not _is_known(file.key, REJECTS_FILE):
            strays.append(file.key)
    temporaries = {file.key: file for file in (*runs, *results, *utterances) if TEMPORARY.fullmatch(file.key)}
    return Outline(
        plans=tuple(sorted(plans, key=int)),
        parts=parts,
        published=dict(published),
        strays=tuple(sorted(strays)),
        attempts=attempts,
        shard_files=tuple(shard_files),
        temporaries=tuple(temporaries.values()),
        empty=not (results or utterances or runs),
    )


def _is_known(key: str, pattern: re.Pattern[str]) -> bool:
    return bool(pattern.fullmatch(key) or TEMPORARY.fullmatch(key))


def _sort_parts(files: Iterable[StoredFile]) -> tuple[dict[str, dict[int, list[str]]], list[str]]:
    """Sort files into parts, by plan and shard, and stray files."""
    parts: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    strays = []
    for file in files:
        match = PART.fullmatch(file.key)
        # each number has one spelling
        if match and match[2] == f"{int(match[2]):06d}":
            parts[match[1]][int(match[2])].append(file.key)
        elif not TEMPORARY.fullmatch(file.key):
            strays.append(file.key)
    return {plan: dict(shards) for plan, shards in parts.items()}, strays

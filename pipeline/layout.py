"""Paths of an output: every key that jobs write or read below it, and patterns that match these keys.

utterances/<partition>/<plan>-<shard>.parquet       one part per shard
rejects/<plan>.parquet                              rows of a plan that have no utterance
_dataset.json                                       settings that all plans share
_runs/<plan>/plan.json                              the plan; it exists once this file does
_runs/<plan>/shards/<token>-<number>.parquet        its rows, one row group per shard
_runs/<plan>/shards/<token>-<number>-texts.parquet  their texts until the plan is finished, with `--texts none` or `hash`
_runs/<plan>/shards/<token>-rejects.parquet         rows rejected during planning
_runs/<plan>/shards/<token>-erased.parquet          salted hashes of erased rows, if the plan is an erasure
_runs/<plan>/attempts/<number>.json                 failed attempts to run the plan
_runs/<plan>/{report.json,report.html,_SUCCESS}     results of a finished plan
_runs/corpus/<time>-<digest>.parquet                ids of the corpus on one night, see pipeline.dataset.corpus_ids
_runs/index/<first>-<last>.parquet                  a copy of the plans' documents and ids, see pipeline.dataset.plan_index
_runs/hub/<digest>.json                             a repository of a hub to which runs were published
summaries/<columns>/...                             sums by group, one file per plan
summaries/@calls/<columns>/...                      metrics of conversations, one file per plan
compacted/...                                       a second copy of the utterances in few files
"""

from __future__ import annotations

import re
from urllib.parse import quote

UTTERANCES, REJECTS, RUNS, SUMMARIES, COMPACTED = "utterances", "rejects", "_runs", "summaries", "compacted"
FOLDERS = (RUNS, UTTERANCES, REJECTS, SUMMARIES, COMPACTED)
"""Folders that jobs write below an output; other folders there belong to the user."""
DATASET = "_dataset.json"
PLAN, SUCCESS, REPORT, PAGE = "plan.json", "_SUCCESS", "report.json", "report.html"
SHARDS, ATTEMPTS = "shards", "attempts"
"""Folders of a plan below `_runs`."""
CORPUS = f"{RUNS}/corpus"
"""Folder of the ids of the corpus on each night."""
INDEX = f"{RUNS}/index"
"""Folder of the index of the plans."""
HUB = f"{RUNS}/hub"
"""Folder of notes about the repositories to which runs were published."""
PROBE = f"{RUNS}/_probe"
"""Written by the test for conditional writes."""
RESULTS = (SUCCESS, REPORT, PAGE)
"""Results of a plan in its folder below `_runs`."""
SUMMARY = "_summary.json"
"""Definition of the groups in a folder of summaries."""

_NUMBER = "([0-9]{6,})"
SHARD_NUMBER = re.compile("[0-9]{6,}")
PLAN_FILE = re.compile(rf"{RUNS}/{_NUMBER}/plan\.json")
RUN_FILE = re.compile(
    rf"{RUNS}/{_NUMBER}/(plan\.json|report\.json|report\.html|_SUCCESS|shards/.+|attempts/[0-9]{{6,}}\.json)", re.DOTALL
)
SHARD_FILE = re.compile(rf"{RUNS}/{_NUMBER}/shards/([0-9a-f]{{12}})-(?:[0-9]{{5,}}(?:-texts)?|rejects|erased)\.parquet")
INDEX_FILE = re.compile(rf"{INDEX}/{_NUMBER}-{_NUMBER}\.parquet")
REJECTS_FILE = re.compile(rf"{REJECTS}/{_NUMBER}\.parquet")
PART = re.compile(rf"{UTTERANCES}/(?:.+/)?{_NUMBER}-{_NUMBER}\.parquet", re.DOTALL)
TEMPORARY = re.compile(r"(?:.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp", re.DOTALL)
"""Hidden file that a local store writes before it links it to its final name."""
OURS = (*(f"{folder}/" for folder in FOLDERS), f".{DATASET}.")
"""Prefixes under which temporary files are created; an output may share its folder with other files."""


def plan_name(number: int) -> str:
    """Return a plan's number in the form used in names: `000001`."""
    return f"{number:06d}"


def run_key(plan: str, name: str) -> str:
    """Return the key of `plan.json` or of a result of a plan."""
    return f"{RUNS}/{plan}/{name}"


def plan_key(plan: str) -> str:
    """Return the key of `plan.json`."""
    return run_key(plan, PLAN)


def shards_folder(plan: str) -> str:
    """Return the folder of a plan's shard files."""
    return run_key(plan, SHARDS)


def shard_file(plan: str, token: str, number: int) -> str:
    """Return the key of one of a plan's shard files."""
    return f"{shards_folder(plan)}/{token}-{number:05d}.parquet"


def texts_file(shard_file: str) -> str:
    """Return the key of the texts of a shard file."""
    return shard_file.removesuffix(".parquet") + "-texts.parquet"


def planning_rejects_key(plan: str, token: str) -> str:
    """Return the key of the rows rejected during planning."""
    return f"{shards_folder(plan)}/{token}-rejects.parquet"


def index_key(first: str, last: str) -> str:
    """Return the key of an object of the index. Args: first, last: the lowest and the highest plan in it."""
    return f"{INDEX}/{first}-{last}.parquet"


def corpus_key(time: str, digest: str) -> str:
    """Return the key of the ids of the corpus at one time."""
    return f"{CORPUS}/{time}-{digest}.parquet"


def hub_key(digest: str) -> str:
    """Return the key of the note about a repository. Args: digest: of its name."""
    return f"{HUB}/{digest}.json"


def tombstones_key(plan: str, token: str) -> str:
    """Return the key of the salted hashes of an erasure."""
    return f"{shards_folder(plan)}/{token}-erased.parquet"


def rejects_key(plan: str) -> str:
    """Return the key of a finished plan's rejects."""
    return f"{REJECTS}/{plan}.parquet"


def attempts_folder(plan: str) -> str:
    """Return the folder of a plan's failed attempts."""
    return run_key(plan, ATTEMPTS)


def attempt_key(plan: str, number: int) -> str:
    """Return the key of one failed attempt."""
    return f"{attempts_folder(plan)}/{number:06d}.json"


def part_key(shard_name: str, partition: str) -> str:
    """Return the key of a shard's part. Args: partition: `col=value/...`, or empty."""
    return "/".join(piece for piece in (UTTERANCES, partition, f"{shard_name}.parquet") if piece)


def summary_folder(names: tuple[str, ...]) -> str:
    """Return the folder of the summaries with these group names."""
    return f"{SUMMARIES}/{'+'.join(quote(name, safe='') for name in names)}"


CALLS = f"{SUMMARIES}/@calls"
"""Folder of the metrics of conversations."""


def calls_folder(names: tuple[str, ...]) -> str:
    """Return the folder of the call metrics by these columns. No group's name begins with an unquoted @."""
    return f"{CALLS}/{'+'.join(quote(name, safe='') for name in names)}"


def summary_key(folder: str, plan: str) -> str:
    """Return the key of one plan's sums."""
    return f"{folder}/{plan}.parquet"


def generation_key(name: str, file: str) -> str:
    """Return the key of the plan or success marker of one compaction."""
    return f"{COMPACTED}/_generations/{name}/{file}"

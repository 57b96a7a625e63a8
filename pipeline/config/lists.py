"""Options that are lists with rules of their own: partitions, embeddings, language tags, channels and reasons of rejects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pipeline.config.models import strings
from pipeline.errors import TRANSIENT_REASONS, Reason, did_you_mean
from pipeline.schema import EMBEDDINGS, passthrough_name, utterance_schema

PRICED = ("H200", "L4", "A10", "core")
"""Machines that `--hourly-rate` prices: those with one card of a kind, and one CPU core."""
_DECIDED_WHILE_PLANNING = {Reason.MALFORMED, Reason.BAD_FIELD, Reason.DUPLICATE_ID}
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PRIMARY_TAG = re.compile(r"[a-z]{2,3}")


def items(value: object) -> list[str]:
    """Split `A,B` or a list of such texts."""
    texts = [value] if isinstance(value, str) else strings(value)
    return [item.strip() for text in texts for item in text.split(",") if item.strip()]


def embedding_names(value: object) -> tuple[str, ...]:
    """Parse the columns of `all`, `none`, or a list such as `audio,fused`. Raises: ValueError."""
    names = items(value)
    if names in (["all"], ["none"]):
        return EMBEDDINGS if names == ["all"] else ()
    full = {name if name.endswith("_embedding") else f"{name}_embedding" for name in names}
    for name in sorted(full - set(EMBEDDINGS)):
        raise ValueError(
            f"unknown embedding {name!r}{did_you_mean(name, EMBEDDINGS)}; known: all, none, {', '.join(EMBEDDINGS)}"
        )
    return tuple(name for name in EMBEDDINGS if name in full)


def partition_columns(value: object) -> tuple[str, ...]:
    """Parse the columns of `--partition-by`. Raises: ValueError for outputs of the job, and names that readers misread."""
    columns = tuple(items(value))
    # column names of version 1; the driver rejects the names that later versions add
    ours = set(utterance_schema(dict.fromkeys(EMBEDDINGS, 1), "float32", version=1).names) - {"language"}
    for column in columns:
        if not _FOLDER_NAME.fullmatch(column):
            raise ValueError(
                f"cannot partition by {column!r}: every reader understands folder names of letters, digits, _ and -, "
                "a letter or digit first; rename the column in the manifest"
            )
        if column in ours:
            raise ValueError(
                f"cannot partition by {column!r}: it is an output of this job. A retried shard whose model output "
                "differs on another machine would leave one row in two partitions. Partition by manifest columns or "
                f"language; filters on {column!r} are served by Parquet statistics. A manifest's own column of this "
                f"name is written as {passthrough_name(column)!r}"
            )
    if len(set(columns)) != len(columns):
        raise ValueError("names a column twice")
    return columns


def primary_tags(value: object) -> tuple[str, ...]:
    """Parse primary language tags from `en,es` or a list. Raises: ValueError."""
    tags = [tag.lower() for tag in items(value)]
    for tag in tags:
        if not _PRIMARY_TAG.fullmatch(tag):
            raise ValueError(f"{tag!r} is not a primary language tag of two or three letters, such as en or es")
    if len(set(tags)) != len(tags):
        raise ValueError("names a language twice")
    if not tags:
        raise ValueError("names no language")
    return tuple(tags)


def channels(value: object) -> tuple[int, ...]:
    """Parse channel numbers from `1`, `0,1` or a list. Raises: ValueError."""
    values = value if isinstance(value, list | tuple) else str(value).split(",")
    texts = [str(channel).strip() for channel in values]
    for channel in texts:
        if not (channel.isascii() and channel.isdigit()):
            raise ValueError(f"{channel!r} is not a channel number from 0")
    return tuple(sorted({int(channel) for channel in texts}))


def reject_reasons(value: object) -> tuple[str, ...]:
    """Parse reasons of rejects from `transient`, `none`, `A,B` or a list. Raises: ValueError."""
    reasons: dict[str, None] = {}
    for name in items(value):
        known = {"transient": TRANSIENT_REASONS, "none": ()}.get(name.lower())
        if name.upper() in _DECIDED_WHILE_PLANNING:
            raise ValueError(f"{name.upper()} is decided from the manifest, which every run reads again")
        if known is None and name.upper() not in set(Reason):
            raise ValueError(f"unknown reason {name!r}{did_you_mean(name.upper(), Reason)}")
        reasons |= dict.fromkeys(map(str, (name.upper(),) if known is None else known))
    return tuple(reasons)


def hourly_rates(value: object) -> dict[str, float]:
    """Parse prices of an hour from `H200=4.5,core=0.04`, a list of such texts, or a mapping. Raises: ValueError."""
    pairs = value.items() if isinstance(value, Mapping) else [item.partition("=")[::2] for item in items(value)]
    rates: dict[str, float] = {}
    for name, price in pairs:
        known = {each.lower(): each for each in PRICED}.get(str(name).strip().lower())
        if known is None:
            raise ValueError(
                f"no machine is called {name!r}{did_you_mean(str(name), PRICED)}; known: {', '.join(PRICED)}"
            )
        try:
            rates[known] = float(str(price))
        except ValueError:
            raise ValueError(f"{known}={price}: the price is not a number") from None
        if not 0 <= rates[known] < math.inf:
            raise ValueError(f"{known}={price}: the price must be 0 or more")
    return rates


def run_numbers(runs: tuple[str, ...]) -> tuple[str, ...]:
    """Return run numbers in six digits, each once. Raises: ValueError."""
    for run in runs:
        if not (run.isascii() and run.isdigit() and int(run)):
            raise ValueError(f"{run!r} is not a run number such as 000007")
    return tuple(dict.fromkeys(f"{int(run):06d}" for run in runs))

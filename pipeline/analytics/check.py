"""Data tests of an output: number of rows, share of rejects, share of nulls, and the types of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.reader import Rows, column_path, reading
from pipeline.errors import ConfigError
from pipeline.layout import REPORT, run_key
from pipeline.redaction import without_query
from pipeline.storage.fetch import read_text


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the tests; None, or no entry, for a test that is not wanted.

    Attributes:
        min_rows: least number of annotated manifest rows.
        max_reject_share: largest share of rejected manifest rows, 0 to 1.
        max_null_share: for each column of the utterances, or field such as `by_model.words.emotion`, the largest share of nulls,
            0 to 1.
        types: for each required column, its Arrow type as text, as in "float" or "list<element: string>".
    """

    min_rows: int | None
    max_reject_share: float | None
    max_null_share: Mapping[str, float]
    types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one test."""

    test: str
    passed: bool
    detail: str


def read_types(uri: str) -> dict[str, str]:
    """Read a JSON file that maps columns to Arrow types. Raises: ConfigError when it cannot be read or is another file."""
    where = without_query(uri)
    try:
        types = json.loads(read_text(uri))
    except ValueError as error:
        raise ConfigError(f"the schema {where} is not JSON: {error}") from error
    if not isinstance(types, dict) or not all(isinstance(kind, str) for kind in types.values()):
        raise ConfigError(
            f'the schema {where} is not a JSON object of columns and types, as in {{"emotion": "string"}}'
        )
    return types


def column_types(rows: Rows) -> dict[str, str]:
    """Return the columns of the utterances and their Arrow types as text."""
    return {field.name: str(field.type) for field in rows.schema()}


def check(rows: Rows, limits: Limits) -> Iterator[Outcome]:
    """Run the requested tests on the given runs.

    A share of nothing fails, since a test that read no row shows nothing.

    Raises: ConfigError for a column that the output does not have; JobError for files that cannot be read.
    """
    schema = rows.schema()
    nullable = {name: column_path(name, rows) for name in limits.max_null_share}
    reports = [json.loads(rows.store.read(run_key(plan.plan, REPORT))) for plan in rows.plans]
    read = {plan.plan for plan in rows.plans}
    # a reject that one of these runs retried counts once
    retried = sum(count for plan in rows.plans for run, count in plan.retries.items() if run in read)
    planned, rejected = (sum(report[name] for report in reports) - retried for name in ("rows", "rejected"))
    if limits.min_rows is not None:
        annotated = planned - rejected
        detail = f"{annotated:,} annotated rows, at least {limits.min_rows:,}"
        yield Outcome("min_rows", annotated >= limits.min_rows, detail)
    if limits.max_reject_share is not None:
        yield _share("max_reject_share", rejected, planned, limits.max_reject_share, "rejected rows")
    if limits.max_null_share:
        yield from _nulls(rows, limits.max_null_share, nullable)
    for name, kind in limits.types.items():
        yield _type(schema, name, kind)


def _share(test: str, part: int, whole: int, limit: float, what: str) -> Outcome:
    if not whole:
        return Outcome(test, False, f"no rows to check for {what}")
    detail = f"{part:,} of {whole:,} {what} ({part / whole:.2%}), at most {limit:.2%}"
    return Outcome(test, part <= limit * whole, detail)


def _nulls(rows: Rows, limits: Mapping[str, float], paths: Mapping[str, tuple[str, ...]]) -> Iterator[Outcome]:
    nulls, total = dict.fromkeys(limits, 0), 0
    with reading():
        for batch in rows.utterances().to_batches(columns={name: pc.field(*path) for name, path in paths.items()}):
            total += batch.num_rows
            for name in limits:
                nulls[name] += batch[name].null_count
    for name, limit in limits.items():
        yield _share(f"max_null_share {name}", nulls[name], total, limit, f"nulls in {name}")


def _type(schema: pa.Schema, name: str, kind: str) -> Outcome:
    if name not in schema.names:
        return Outcome(f"schema {name}", False, f"no column {name}; expected {kind}")
    actual = str(schema.field(name).type)
    return Outcome(f"schema {name}", actual == kind, f"{name} is {actual}, expected {kind}")


def document(outcomes: list[Outcome], rows: Rows) -> dict[str, Any]:
    """Return the results as a JSON object."""
    return {
        "passed": all(outcome.passed for outcome in outcomes),
        "tests": [{"test": o.test, "passed": o.passed, "detail": o.detail} for o in outcomes],
        "runs": [plan.plan for plan in rows.plans],
        "unfinished_runs": list(rows.unfinished),
        "schema": column_types(rows),
    }

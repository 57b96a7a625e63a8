"""Call metrics of an output, in one file per run.

    summaries/@calls/<names>/_summary.json     columns that identify a call and its speakers
    summaries/@calls/<names>/<plan>.parquet    rows of every call that has an utterance in that plan

A call may have utterances in several runs, for instance one channel each, and overlaps cannot be added up over runs. The file
of a run therefore has its calls with all runs measured before it. Runs may be finished in another order than they were planned,
so of the files that have a call the one that counts most runs is right (`call_rows`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.calls.columns import CALL_COLUMNS
from pipeline.analytics.calls.queries import sums
from pipeline.analytics.summarize import Groups, parse_groups
from pipeline.config.columns import SPEAKER_ID
from pipeline.dataset.plan import parquet_bytes
from pipeline.dataset.reader import Rows, asking, dataset, quoted
from pipeline.errors import ConfigError, did_you_mean
from pipeline.layout import SUMMARY, calls_folder, summary_key
from pipeline.schema import described
from pipeline.storage.documents import FORMAT, read_document
from pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class Calls:
    """Identity of calls and speakers.

    Attributes:
        groups: columns that identify a call.
        speaker: column that tells the speakers of a call apart.
    """

    groups: Groups
    speaker: str

    @property
    def folder(self) -> str:
        """Return the folder of the files."""
        return calls_folder(tuple(self.groups.by))

    @property
    def document(self) -> dict[str, object]:
        """Return the definition, as stored in the folder."""
        return {"format": FORMAT, "by": dict(self.groups.by), "speaker": self.speaker}


def parse_calls(words: Sequence[str], speaker: str, columns: Sequence[str]) -> Calls:
    """Parse the columns that identify a call, as `summarize` parses groups, and the speaker's.

    Raises: ConfigError for a missing column, or a name that the metrics use.
    """
    groups = parse_groups(words, columns)
    for name in groups.by:
        if name in CALL_COLUMNS:
            raise ConfigError(
                f"--by {name}: {name!r} is a column of every file; give it another name, as in my_{name}={name}"
            )
    if speaker not in columns:
        raise ConfigError(f"--speaker {speaker}: no such column{did_you_mean(speaker, columns)}")
    return Calls(groups, speaker)


def default_speaker(rows: Rows) -> str:
    """Return the column that tells speakers apart: `speaker_id` of outputs that were made with speakers, else the channel."""
    return SPEAKER_ID if rows.has_speakers else "channel"


def measure_calls(rows: Rows, calls: Calls) -> Iterator[tuple[str, int]]:
    """Write the missing files. Yields: each run that gets one, and its number of calls.

    Reads the utterances of a new run, and those of the runs measured before that have one of its calls.
    Raises: ConfigError when the folder has metrics by other columns, or an expression is not valid.
    """
    store = rows.store
    _refuse_others(store, calls)
    done = {entry.key for entry in store.list(calls.folder)}
    measured = [plan.plan for plan in rows.plans if summary_key(calls.folder, plan.plan) in done]
    for plan in rows.plans:
        key = summary_key(calls.folder, plan.plan)
        if key in done:
            continue
        read = rows.of([*_with_calls_of(rows, calls, measured, plan.plan), plan.plan])
        query = sums(calls.groups.by, quoted(calls.speaker), plan.plan, rows.schema().names)
        with asking(utterances=read.utterances(), planned=read.planned()) as connection:
            table = connection.sql(query).to_arrow_table()
        # after the query, so that an invalid expression does not claim the name
        if not store.put_if_absent(f"{calls.folder}/{SUMMARY}", json.dumps(calls.document, indent=1).encode()):
            _refuse_others(store, calls)
        rows.require_no_erasure_since()
        store.put_if_absent(key, parquet_bytes(_described(table, len(calls.groups.by))))
        measured.append(plan.plan)
        yield plan.plan, table.filter(pa.compute.equal(table["scope"], "call")).num_rows


def _with_calls_of(rows: Rows, calls: Calls, measured: list[str], run: str) -> list[str]:
    """Return the measured runs that have an utterance of a call of this run, by their files."""
    if not measured:
        return []
    names = list(calls.groups.by)
    files = [summary_key(calls.folder, plan) for plan in measured]
    schema = pa.schema(
        [*(_schema(rows.store, files[0]).field(name) for name in names), pa.field("run_id", pa.string())]
    )
    keys = ", ".join(map(quoted, names))
    given = ", ".join(f"({sql}) AS {quoted(name)}" for name, sql in calls.groups.by.items())
    with asking(
        utterances=rows.of([run]).utterances(), measured=dataset(rows.store, calls.folder, files, schema)
    ) as connection:
        found = connection.sql(
            f"SELECT DISTINCT run_id FROM measured SEMI JOIN (SELECT {given} FROM utterances) AS mine USING ({keys})"
        ).fetchall()
    return [plan for plan in measured if (plan,) in found]


def call_rows(store: Store, calls: Calls) -> pa.Table:
    """Return the rows of every call, each call from the file that counts most runs, with its speakers after it."""
    files = sorted(entry.key for entry in store.list(calls.folder) if entry.key.endswith(".parquet"))
    names = ", ".join(map(quoted, calls.groups.by))
    with asking(measured=dataset(store, calls.folder, files, _schema(store, files[-1]))) as connection:
        table = connection.sql(
            f"SELECT * FROM measured "
            f"QUALIFY rank() OVER (PARTITION BY {names} ORDER BY runs DESC, run_id DESC) = 1 "
            f"ORDER BY {names}, scope, speaker"
        ).to_arrow_table()
    return _described(table, len(calls.groups.by))


def _schema(store: Store, key: str) -> pa.Schema:
    with store.open(key) as file:
        return pq.read_schema(file)


def _described(table: pa.Table, keys: int) -> pa.Table:
    fields = list(table.schema)
    return pa.table(table.columns, schema=pa.schema([*fields[:keys], *described(fields[keys:], CALL_COLUMNS)]))


def _refuse_others(store: Store, calls: Calls) -> None:
    """Check the definition of existing files. Raises: ConfigError when they use other columns."""
    try:
        existing = read_document(store, f"{calls.folder}/{SUMMARY}")
    except FileNotFoundError:
        return
    if existing != calls.document:
        raise ConfigError(
            f"{store.root}/{calls.folder} already contains metrics by {existing['by']} and speaker {existing['speaker']!r}; "
            "choose another name for yours: --by NAME=COLUMN"
        )

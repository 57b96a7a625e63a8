"""Export of an output of `jobs.annotate` as manifest rows: one per utterance, with its span."""

from __future__ import annotations

import math

from pipeline.config.columns import SPEAKER_ID
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.reader import finished_rows, reading
from pipeline.manifest.columns import to_python
from pipeline.manifest.fields import KNOWN
from pipeline.manifest.sources.corpus import Corpus, Row
from pipeline.schema import passthrough_name
from pipeline.storage.store import open_store

_READ = ("utterance_id", "audio", "start_s", "end_s", "channel", "text", "label", "language")
_TAKEN = {*KNOWN, "label"}
_DECIMALS = 7
"""Decimal places of durations in seconds: a sample at 16 kHz is 0.0000625 s."""


def read_output(output: str) -> Corpus:
    """Read one row for each utterance of the finished runs of an output, in the order of runs and shards.

    `label` is the model's. Columns of the manifest get their own names back, or `original_<name>` if that name is
    taken: the manifest's own `label` becomes `original_label`.

    Raises: ConfigError when there is no output, JobError when its files cannot be read.
    """
    rows = finished_rows(open_store(output))
    with reading():
        ours = [*_READ, *([SPEAKER_ID] if rows.has_speakers else [])]
        table = rows.utterances().to_table(columns=[*ours, *rows.extra.names])
    values = {name: to_python(table[name]) for name in table.column_names}
    names = _own_names(rows.extra.names, [name.lower() for name in ours])
    corpus = Corpus()
    for number in range(table.num_rows):
        row: Row = {"id": values["utterance_id"][number], "audio": values["audio"][number]}
        if row["audio"] is not None:
            row |= _span(values["start_s"][number], values["end_s"][number])
        row |= {name: values[name][number] for name in ours[4:] if name != "text" or rows.has_words}
        row |= {own: _finite(values[name][number]) for name, own in names.items()}
        corpus.rows.append({name: value for name, value in row.items() if value is not None})
    for plan in rows.unfinished:
        corpus.leave_out("a run that is not finished", plan)
    return corpus


def _span(start_s: object, end_s: object) -> Row:
    """Return the offset and duration of an utterance. The end is unknown when the audio was not decoded."""
    start = float(str(start_s or 0.0))
    return (
        {"offset": start}
        if end_s is None
        else {"offset": start, "duration": round(float(str(end_s)) - start, _DECIMALS)}
    )


def _own_names(columns: list[str], ours: list[str]) -> dict[str, str]:
    """Return the manifest name of each pass-through column, prefixed with `original_` if that name is taken."""
    taken, names = {*_TAKEN, *ours[4:]}, {}
    for column in columns:
        bare = column.removeprefix("manifest_")
        own = bare if passthrough_name(bare, SCHEMA_VERSION, ours) == column else column
        while own.lower() in taken:
            own = f"original_{own}"
        taken.add(own.lower())
        names[column] = own
    return names


def _finite(value: object) -> object:
    """Return a value with NaN and infinities, which JSON cannot express, replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value

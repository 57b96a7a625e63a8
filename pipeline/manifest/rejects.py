"""Rejects as Arrow tables: the one conversion of `Reject` to columns, the schema of `rejects/`, redaction and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from pipeline.errors import Reject
from pipeline.manifest.hash_buckets import Keys, as_keys, key_of
from pipeline.manifest.records import RejectedLine
from pipeline.redaction import redacted, redacted_audio, redacted_line, without_query
from pipeline.schema import REJECT_COLUMNS, REJECT_SCHEMA, ROW_SCHEMA, described

CAUSE = pa.struct([("reason", pa.string()), ("detail", pa.string()), ("stage", pa.string()), ("attempts", pa.int32())])
"""Arrow type of `Reject.document()`."""

_CARRIED = ("text", "language", "offset_s", "duration_s", "channel")
"""Columns of a row that its reject has in addition to those of `REJECT_SCHEMA`."""


def reject_schema(extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of rejects: reason and position, the row's own columns, and the raw line if unreadable."""
    carried = [ROW_SCHEMA.field(name) for name in _CARRIED]
    ours = [*REJECT_SCHEMA, *carried, pa.field("raw", pa.string())]
    return pa.schema([*described(ours, REJECT_COLUMNS), *extra])


def extra_schema(schema: pa.Schema) -> pa.Schema:
    """Return the pass-through columns of a table of plan rows."""
    return pa.schema([field for field in schema if field.name not in ROW_SCHEMA.names])


def refused_table(rows: pa.Table, rejects: Mapping[int, Reject]) -> pa.Table:
    """Return the rejects of rows that may not be planned, given by position."""
    positions = sorted(rejects)
    return rejects_table(rows.take(pa.array(positions, pa.int64())), [rejects[position] for position in positions])


def rejects_table(rows: pa.Table, rejects: Sequence[Reject], *, run_id: str = "") -> pa.Table:
    """Return the rejects of plan rows, one for each row; pass-through columns are unchanged."""
    columns = {
        "recording_id": rows["recording_id"],
        "audio": pa.array([uri and without_query(uri) for uri in rows["audio"].to_pylist()], pa.string()),
        **_cause_columns(rejects),
        "manifest": rows["manifest"],
        "line": rows["line"],
        "run_id": pa.array([run_id] * len(rejects), pa.string()),
        **{name: rows[name] for name in _CARRIED},
        "raw": pa.nulls(len(rejects), pa.string()),
        **{name: rows[name] for name in rows.schema.names if name not in ROW_SCHEMA.names},
    }
    return pa.table(columns, schema=reject_schema(extra_schema(rows.schema)))


def lines_table(lines: Sequence[RejectedLine], manifest: str) -> pa.Table:
    """Return the rejects of lines that are not plan rows."""
    columns = {
        "recording_id": pa.array([line.recording_id for line in lines], pa.string()),
        "audio": pa.array([line.audio for line in lines], pa.string()),
        **_cause_columns([line.cause for line in lines]),
        "manifest": pa.array([manifest] * len(lines), pa.string()),
        "line": pa.array([line.line for line in lines], pa.int64()),
        "run_id": pa.array([""] * len(lines), pa.string()),
        **{name: pa.nulls(len(lines), ROW_SCHEMA.field(name).type) for name in _CARRIED},
        "raw": pa.array([line.raw for line in lines], pa.string()),
    }
    return pa.table(columns, schema=reject_schema())


def _cause_columns(rejects: Sequence[Reject]) -> dict[str, pa.Array]:
    causes = pa.array([reject.document() for reject in rejects], CAUSE)
    return {field.name: causes.field(field.name) for field in CAUSE}


def without_secrets(rejects: pa.Table) -> pa.Table:
    """Redact the URLs that rejects quote in their audio, detail and raw line."""
    quoted = [rejects[name].to_pylist() for name in ("manifest", "audio", "detail", "raw")]
    redactions = [
        (audio and redacted_audio(audio, manifest), redacted(detail), raw and redacted_line(raw, manifest))
        for manifest, audio, detail, raw in zip(*quoted, strict=True)
    ]
    for number, name in enumerate(("audio", "detail", "raw")):
        field = rejects.schema.field(name)
        values = pa.array([texts[number] for texts in redactions], field.type)
        rejects = rejects.set_column(rejects.schema.get_field_index(name), field, values)
    return rejects


def without_words(rejects: pa.Table) -> pa.Table:
    """Drop the texts of rejects, and replace raw lines, which may quote texts, by the SHA-256 of their redacted form."""
    pairs = zip(rejects["raw"].to_pylist(), rejects["manifest"].to_pylist(), strict=True)
    hashes = [raw and text_hash(redacted_line(raw, manifest)) for raw, manifest in pairs]
    for name, column in {"text": pa.nulls(rejects.num_rows, pa.string()), "raw": pa.array(hashes, pa.string())}.items():
        rejects = rejects.set_column(rejects.schema.get_field_index(name), rejects.schema.field(name), column)
    return rejects


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text, as hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def reject_keys(rejects: pa.Table) -> Keys:
    """Return the keys of a plan's rejects, for `Staging.select` in a later run."""
    return as_keys(joined_keys(rejects))


def joined_keys(rejects: pa.Table) -> bytes:
    """Return the keys of rejects: the same line rejected for the same reason by a later run is the same reject.

    Rejects of earlier versions hold the line with its queries.
    """
    identifying = rejects.select(["manifest", "line", "recording_id", "reason", "raw"]).to_pylist()
    return b"".join(key_of("reject", *map(str, _without_queries(reject).values())) for reject in identifying)


def _without_queries(reject: dict[str, object]) -> dict[str, object]:
    raw = reject["raw"] and redacted_line(str(reject["raw"]), str(reject["manifest"]))
    return {**reject, "raw": raw}

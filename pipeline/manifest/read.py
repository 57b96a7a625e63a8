"""Manifest reader: streams rows and rejects of JSON Lines, CSV and Parquet from any fsspec file system.

The format is detected from the content. Known columns: audio (or audio_filepath, path, uri: the first that a row has),
id, text, language, offset, duration, channel. Every other column, including `label`, passes through under
`passthrough_name` with its type. Names are matched without case. An error in one line rejects that line; a file that is
not a manifest as a whole raises ConfigError.

Modules: formats in `jsonl`, `delimited` and `parquet`; folders and globs in `expand`; columns in folder names in
`partitions`; known columns in `fields`; types of other columns in `columns`. Costs about 10 microseconds per row on one
core, and memory for one chunk (at most 32 MiB of text and its parsed form), however long the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.errors import ConfigError, did_you_mean
from pipeline.manifest.columns import array_of, field_of, unify, untyped_field
from pipeline.manifest.delimited import read_csv
from pipeline.manifest.expand import expand
from pipeline.manifest.fields import ALIASES, KNOWN, Fields, check_fields, derived_id
from pipeline.manifest.fit import conform
from pipeline.manifest.folder import read_folder
from pipeline.manifest.jsonl import read_jsonl
from pipeline.manifest.lhotse import with_cuts
from pipeline.manifest.parquet import read_parquet
from pipeline.manifest.partitions import Partitioned, partition_columns
from pipeline.manifest.records import RAW_CHARACTERS, Records, RejectedLine, bad_field
from pipeline.manifest.source import Form, Source, open_manifest
from pipeline.manifest.tar import read_tar
from pipeline.redaction import without_query
from pipeline.schema import ROW_SCHEMA, passthrough_name
from pipeline.storage.uri import own_uri

__all__ = ["ManifestChunk", "conform", "derived_id", "expand", "read_manifest", "unify"]

CHUNK_ROWS = 20_000

_PATIENCE_ROWS = (
    10_000  # rows to read before a file without an audio column is refused, since a later line may have one
)


@dataclass
class ManifestChunk:
    """Some consecutive lines of a manifest.

    Attributes:
        rows: `ROW_SCHEMA`, then the pass-through columns of these lines, with types from their values (see `unify`).
        rejects: the rejected lines, in order.
        manifest: the manifest's URI without the query.
    """

    rows: pa.Table
    rejects: list[RejectedLine]
    manifest: str


@dataclass
class Seen:
    """Columns seen so far in a file, to check that it is a manifest."""

    manifest: str
    audio_optional: bool
    rows: int = 0
    names: dict[str, None] = field(default_factory=dict)

    def add(self, rows: int, names: Iterable[str]) -> None:
        """Add the columns of the next rows, and check them when enough rows have been read."""
        self.rows += rows
        self.names |= dict.fromkeys(names)
        if self.rows >= _PATIENCE_ROWS:
            self.verify()

    def verify(self) -> None:
        """Raise ConfigError when no row so far has an audio column (or text, where that suffices)."""
        meanings = {KNOWN.get(name.lower()) for name in self.names}
        if not self.names or "audio" in meanings or (self.audio_optional and "text" in meanings):
            return
        wanted = [*ALIASES["audio"], *(["text"] if self.audio_optional else [])]
        unknown = [name.lower() for name in self.names if name.lower() not in KNOWN]
        hint = next(filter(None, (did_you_mean(name, wanted) for name in unknown)), "") or _advice(set(unknown))
        columns = ", ".join(map(repr, list(self.names)[:20])) + (", ..." if len(self.names) > 20 else "")
        raise ConfigError(
            f"manifest {self.manifest} has no column {', '.join(wanted)}; its columns are {columns}{hint}"
        )


def _advice(columns: set[str]) -> str:
    """Return the end of the message on a file without an audio column, by its columns in lower case."""
    if columns >= {"sources", "sampling_rate"} or columns >= {"recording_id", "start"}:
        return (
            "; make a manifest of Lhotse's recordings and supervisions with `jobs.make_manifest FOLDER --layout lhotse`"
        )
    return "; rename the column of the audio, or name the manifests alone if this file is not one"


def read_manifest(uri: str, *, chunk_rows: int = CHUNK_ROWS, audio_optional: bool = False) -> Iterator[ManifestChunk]:
    """Read one manifest file as a stream of chunks of at most `chunk_rows` lines. An empty file yields no chunk.

    Args:
        uri: a file, as returned by `expand`.
        audio_optional: whether a row with a non-empty text may lack audio.

    Raises: ConfigError for a missing file, a file that is not a manifest (binary, HTML, a JSON array, UTF-16, no audio
        column, an unreadable header or schema) and truncated compression or Parquet pages; JobError when the store
        fails. Chunks yielded before remain valid.
    """
    display_uri = without_query(uri)
    with records_in(uri, chunk_rows) as chunks:
        seen = Seen(display_uri, audio_optional)
        stated = partition_columns(uri)
        for chunk in chunks:
            records = Partitioned(chunk, stated)
            seen.add(len(records.lines), records.names)
            if records.lines or records.rejects:
                yield chunk_of(records, uri, display_uri, audio_optional=audio_optional)
        seen.verify()


def read_ids(uri: str) -> Iterator[str]:
    """Read the recording ids of a manifest, whose rows need no audio where they have an id.

    Raises: ConfigError as `read_manifest`, and for a line without an id.
    """
    display_uri = without_query(uri)
    with records_in(uri, CHUNK_ROWS) as chunks:
        for records in chunks:
            chunk = chunk_of(Partitioned(records, partition_columns(uri)), uri, display_uri, audio_optional=True)
            yield from chunk.rows["recording_id"].to_pylist()
            for line in chunk.rejects:
                if line.recording_id is None:
                    raise ConfigError(f"{display_uri}, line {line.line}: {line.cause.detail}; it names no recording")
                yield line.recording_id


@contextmanager
def records_in(uri: str, chunk_rows: int) -> Iterator[Iterator[Records]]:
    """Open a manifest or a folder of audio, and give its records. Raises: see `read_manifest`."""
    if uri.endswith("/"):
        yield read_folder(uri, chunk_rows)
        return
    with open_manifest(uri) as source:
        yield records_of(source, chunk_rows)


def records_of(source: Source, chunk_rows: int) -> Iterator[Records]:
    if source.form is Form.JSONL:
        yield from with_cuts(read_jsonl(source.blocks, chunk_rows), source.uri)
    elif source.form is Form.CSV:
        yield from read_csv(source.blocks, chunk_rows, source.display_uri)
    elif source.form is Form.PARQUET:
        yield from read_parquet(source.raw, chunk_rows, source.display_uri, uri=source.uri, reopen=source.reopen)
    elif source.form is Form.TAR:
        yield from read_tar(source.raw, chunk_rows, own_uri(source.uri))


def chunk_of(records: Partitioned, uri: str, display_uri: str, *, audio_optional: bool) -> ManifestChunk:
    """Check the known columns of some records, and convert them to a chunk."""
    known, leftover = _known_columns(records)
    fields = check_fields(
        lambda name: known[name], from_csv=records.from_csv, manifest=uri, audio_optional=audio_optional
    )
    for position, detail in records.contradictions().items():
        fields.rejects.setdefault(position, bad_field(detail))
    rejects = list(records.rejects)
    for position, cause in fields.rejects.items():
        audio = fields.audio[position] or _as_given(known["audio"][position])
        line, raw = records.lines[position], records.raw(position)
        rejects.append(RejectedLine(line, cause, raw, fields.recording_id[position], audio))
    rejects.sort(key=lambda reject: reject.line)
    kept = [i for i in range(len(records.lines)) if i not in fields.rejects] if fields.rejects else None
    table = _row_columns(fields, records.lines, display_uri, kept)
    for name in records.names:
        if name.lower() in KNOWN and name not in leftover:
            continue
        if name in leftover:
            array = array_of(leftover[name] if kept is None else [leftover[name][i] for i in kept])
        else:
            array = records.array(name, kept)
        field = (untyped_field if records.untyped(name) else field_of)(passthrough_name(name), array)
        table = table.append_column(field, getattr(array, "storage", array))
    return ManifestChunk(table, rejects, display_uri)


def _as_given(audio: object) -> str | None:
    return audio[:RAW_CHARACTERS] if isinstance(audio, str) else None


def _known_columns(records: Records) -> tuple[dict[str, Sequence[object]], dict[str, list[object]]]:
    """Return the known columns by meaning, and pass-through columns of the aliases that some rows do not use.

    Each row uses the first alias in which it has a value.
    """
    known: dict[str, Sequence[object]] = {}
    leftover: dict[str, list[object]] = {}
    for meaning, aliases in ALIASES.items():
        names = sorted(
            (name for name in records.names if name.lower() in aliases), key=lambda name: aliases.index(name.lower())
        )
        taken: Sequence[object] = records.values(names[0]) if names else [None] * len(records.lines)
        for name in names[1:]:
            values = records.values(name)
            unused = [None if _absent(first) else value for first, value in zip(taken, values, strict=True)]
            taken = [value if _absent(first) else first for first, value in zip(taken, values, strict=True)]
            if any(value is not None for value in unused):
                leftover[name] = unused
        known[meaning] = taken
    return known, leftover


def _absent(value: object) -> bool:
    return value is None or value == ""


def _row_columns(fields: Fields, lines: Sequence[int], display_uri: str, kept: Sequence[int] | None) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "recording_id": fields.recording_id,
        "audio": fields.audio,
        "text": fields.text,
        "language": fields.language,
        "offset_s": fields.offset_s,
        "duration_s": fields.duration_s,
        "channel": fields.channel,
        "manifest": [display_uri] * len(lines),
        "line": lines,
    }
    arrays = []
    for column in ROW_SCHEMA:
        values = columns[column.name]
        arrays.append(pa.array(values if kept is None else [values[i] for i in kept], column.type))
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)

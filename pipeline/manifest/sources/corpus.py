"""Result of every corpus layout: manifest rows, and the omitted names with reasons."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.errors import ConfigError, RejectedRow
from pipeline.manifest.delimited import read_csv
from pipeline.redaction import without_query
from pipeline.storage.fetch import fetch

Row = dict[str, object]

_CARD_WORDS = {"anger": "angry", "joy": "happy", "sadness": "sad"}
_MAX_TABLE_BYTES = 256 * 2**20
_CHUNK_ROWS = 10_000


@dataclass
class Corpus:
    """Rows of a new manifest, and the omitted names by reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, name: str) -> None:
        """Record that `name` is omitted."""
        self.left_out.setdefault(why, []).append(name)


def card_label(emotion: str, language: str) -> str:
    """Return the label of an emotion in a language's published models: seven English words; six of ours for Spanish.

    Source: `id2label` of the published models. Corpora in other languages use the English words.
    """
    return emotion if language == "es" else _CARD_WORDS.get(emotion, emotion)


def file_name(uri: str) -> str:
    """Return the last part of a path or URI."""
    return PurePosixPath(without_query(uri)).name


def table_of(files: Sequence[str], name: str, needed: Sequence[str], corpus: Corpus) -> list[dict[str, str]] | None:
    """Read the CSV file called `name` among a corpus' files; return None if it is missing.

    It is read as a manifest is, so that a stray quote costs its line and hides no other.

    Args:
        corpus: receives the lines that cannot be read, as omitted.
    Raises: ConfigError when the file cannot be read, lacks a column or exists more than once.
    """
    found = [file for file in files if file_name(file).lower() == name.lower()]
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"{name} is there {len(found)} times, such as {found[0]} and {found[1]}; name one corpus")
    try:
        content = fetch(found[0], max_bytes=_MAX_TABLE_BYTES).removeprefix(codecs.BOM_UTF8)
    except RejectedRow as error:
        raise ConfigError(f"{found[0]} cannot be read: {error}") from error
    rows: list[dict[str, str]] = []
    for records in read_csv(iter([content]), _CHUNK_ROWS, found[0]):
        rows += [dict(zip(records.names, cells, strict=True)) for cells in records.rows]
        for bad in records.rejects:
            corpus.leave_out("a line of a table that cannot be read", f"{name}, line {bad.line}: {bad.cause.detail}")
    missing = sorted(set(needed) - set(rows[0] if rows else {}))
    if missing:
        raise ConfigError(f"{found[0]} has no row, or no column {', '.join(missing)}")
    return rows

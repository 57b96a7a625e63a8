"""Further columns of a new manifest: from the names of the audio files, or joined from a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pipeline.errors import ConfigError, did_you_mean
from pipeline.manifest.python_values import plain_values
from pipeline.manifest.read import CHUNK_ROWS, records_of
from pipeline.manifest.source import open_manifest
from pipeline.manifest.sources.corpus import Corpus, file_name
from pipeline.redaction import without_query

_GROUP = re.compile(r"\{([^{}]*)\}|(\*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OTHERWISE_NAMED = "a path that does not match --pattern"
_TAKEN = {"id", "audio"}
"""Columns that a pattern or table may not replace: they identify the row."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern such as `day={day}/{speaker}/*.wav`, which matches the end of a path.

    `{name}` matches the text of one column, and `*` any text, neither across a slash.

    Raises: ConfigError for a pattern without `{name}`, or with a name that is not a column's.
    """
    names = [match[1] for match in _GROUP.finditer(pattern) if match[2] is None]
    if not names:
        raise ConfigError(f"--pattern {pattern!r} names no column, as in 'day={{day}}/{{speaker}}/*.wav'")
    for name in names:
        if not _NAME.fullmatch(name) or name.lower() in _TAKEN or names.count(name) > 1:
            raise ConfigError(
                f"--pattern {pattern!r}: {{{name}}} cannot be a column: use letters, digits and _, each name once, and "
                "neither id nor audio"
            )
    parts, end = [], 0
    for match in _GROUP.finditer(pattern):
        parts += [re.escape(pattern[end : match.start()]), "[^/]*" if match[2] else f"(?P<{match[1]}>[^/]+)"]
        end = match.end()
    return re.compile("(?:^|/)" + "".join(parts) + re.escape(pattern[end:]) + r"\Z", re.DOTALL)


def add_from_paths(corpus: Corpus, pattern: re.Pattern[str]) -> None:
    """Add the columns of a pattern, as text, to each row; rows with other paths are left out and counted.

    Raises: ConfigError when no path matches.
    """
    kept = []
    for row in corpus.rows:
        path = without_query(str(row["audio"]))
        if match := pattern.search(path):
            kept.append({**row, **match.groupdict()})
        else:
            corpus.leave_out(_OTHERWISE_NAMED, file_name(path))
    if corpus.rows and not kept:
        first = without_query(str(corpus.rows[0]["audio"]))
        raise ConfigError(f"--pattern matches the end of none of {len(corpus.rows):,} paths, such as {first}")
    corpus.rows = kept


def join(corpus: Corpus, table: str, on: str) -> int:
    """Add the columns of a table, CSV, JSON Lines or Parquet, to the rows whose value in the column `on` is the same text.

    Returns: the number of rows that the table does not have; they keep their columns.
    Raises: ConfigError for a table that cannot be read, lacks the column, has two lines for one value or a column that the
        rows already have, or when no row has the column.
    """
    columns = dict.fromkeys(name for row in corpus.rows for name in row)
    if corpus.rows and on not in columns:
        raise ConfigError(f"--on {on}: the rows have no such column{did_you_mean(on, columns)}")
    lines = _lines_by(table, on, columns)
    unmatched = 0
    for row in corpus.rows:
        line = lines.get(str(row[on])) if on in row else None
        unmatched += line is None
        row.update(line or {})
    return unmatched


def _lines_by(table: str, on: str, columns: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return the lines of a table by their text in the column `on`, without nulls and without that column."""
    where, lines = without_query(table), {}
    for number, line in enumerate(_read(table, on), 1):
        key = line.pop(on, None)
        if clash := sorted({name.lower() for name in line} & ({name.lower() for name in columns} | _TAKEN)):
            raise ConfigError(
                f"--join {where}: the rows already have a column {', '.join(clash)}; rename it in the table"
            )
        if key is None:
            continue
        if str(key) in lines:
            raise ConfigError(f"--join {where}: two lines have {on} = {str(key)!r}, the second is number {number:,}")
        lines[str(key)] = {name: value for name, value in line.items() if value is not None}
    return lines


def _read(table: str, on: str) -> Iterator[dict[str, object]]:
    with open_manifest(table) as source:
        for records in records_of(source, CHUNK_ROWS):
            if records.rejects:
                bad = records.rejects[0]
                raise ConfigError(f"--join {source.display_uri}, line {bad.line}: {bad.cause.detail}")
            if on not in records.names:
                hint = did_you_mean(on, records.names)
                raise ConfigError(f"--join {source.display_uri} has no column {on}{hint}")
            arrays = {name: plain_values(records.array(name, None)) for name in records.names}
            for values in zip(*arrays.values(), strict=True):
                yield dict(zip(arrays, values, strict=True))

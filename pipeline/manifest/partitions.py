"""Columns in the names of a manifest's folders (Hive partitions): `language=es/speaker=007/part-0.parquet`.

Spark, Hive, Athena and pandas (`partition_cols`) omit such columns from the file. Here they are text (`007` stays
`007`), and null for `__HIVE_DEFAULT_PARTITION__`. A row with another value in such a column contradicts its folder and
is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.manifest.columns import array_of, to_python
from pipeline.manifest.fields import KNOWN, NUMBERS
from pipeline.manifest.records import BadName, Names, Records
from pipeline.redaction import without_query
from pipeline.schema import passthrough_name

_FOLDER = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWN = 80


def partition_columns(uri: str) -> dict[str, str | None]:
    """Return the columns in the folder names of a manifest's path, outermost first.

    Raises: ConfigError for an invalid column name, and for two folders with different values of one column.
    """
    display_uri = without_query(uri)
    found: dict[str, str | None] = {}
    names = Names()
    for folder in display_uri.partition("://")[2 if "://" in display_uri else 0].split("/")[:-1]:
        if not (stated := _FOLDER.fullmatch(folder)):
            continue
        value = None if stated[2] == _NULL else unquote(stated[2])
        try:
            (name,) = names.add([unquote(stated[1])])
        except BadName as error:
            raise ConfigError(f"manifest {display_uri}: folder {folder[:_SHOWN]!r}: {error}") from None
        if name in found and found[name] != value:
            raise ConfigError(
                f"manifest {display_uri}: its folders state two values of {name!r}: {found[name]!r} and {value!r}"
            )
        found[name] = value
    return found


class Partitioned:
    """Records of a file, extended by the columns of its folders."""

    def __init__(self, records: Records, stated: Mapping[str, str | None]) -> None:
        self._records = records
        self.from_csv, self.lines, self.rejects = records.from_csv, records.lines, records.rejects
        spelling = {passthrough_name(name).lower(): name for name in records.names}
        own = {spelling.get(passthrough_name(name).lower(), name): value for name, value in stated.items()}
        self.names: dict[str, None] = {**records.names, **dict.fromkeys(own)}
        self._stated = own

    def untyped(self, name: str) -> bool:
        """Return whether a column is text only because CSV cells and folder names have no types."""
        return self.from_csv or (name in self._stated and name not in self._records.names)

    def raw(self, position: int) -> str:
        """Return the row as written in the file."""
        return self._records.raw(position)

    def values(self, name: str) -> Sequence[object]:
        """Return one column; rows without a value in the file get the folder's value."""
        if name not in self._stated:
            return self._records.values(name)
        stated = _known_value(name, self._stated[name], from_csv=self.from_csv)
        if name not in self._records.names:
            return [stated] * len(self.lines)
        return [stated if _absent(value) else value for value in self._records.values(name)]

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """Return one pass-through column; rows without a value in the file get the folder's value."""
        count = len(self.lines) if kept is None else len(kept)
        if name not in self._stated:
            return self._records.array(name, kept)
        if name not in self._records.names:
            return pa.array([self._stated[name]] * count, pa.string())
        array = self._records.array(name, kept)
        if self._stated[name] is None or not array.null_count:
            return array
        return array_of([self._stated[name] if value is None else value for value in to_python(array)])

    def contradictions(self) -> dict[int, str]:
        """Return a message for each row, by position, whose value differs from that of its folder."""
        found: dict[int, str] = {}
        for name, stated in self._stated.items():
            if name not in self._records.names:
                continue
            known = name.lower() in KNOWN
            values = self._records.values(name) if known else to_python(self._records.array(name, None))
            for position, value in enumerate(values):
                if (value is None or (known and value == "")) or (stated is not None and _same(value, stated)):
                    continue
                folder = "no value" if stated is None else repr(stated[:_SHOWN])
                found.setdefault(
                    position,
                    f"column {name!r} is {str(value)[:_SHOWN]!r} in the file, but its folder's name states {folder}",
                )
        return found


def _absent(value: object) -> bool:
    return value is None or value == ""


def _known_value(name: str, stated: str | None, *, from_csv: bool) -> object:
    """Return a folder's value of a known column, with the type that the file's format would give it."""
    if not stated:
        return None
    if KNOWN.get(name.lower()) in NUMBERS and not from_csv and _NUMBER.fullmatch(stated):
        return float(stated)
    return stated


def _same(value: object, stated: str) -> bool:
    """Return whether a file's value equals that of its folder; numbers and booleans are compared as such."""
    if isinstance(value, bool):
        return stated.lower() == str(value).lower()
    if isinstance(value, int | float):
        return _NUMBER.fullmatch(stated) is not None and float(stated) == value
    return str(value) == stated

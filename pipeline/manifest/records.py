"""Records of a manifest on their way from a format to a table: what the three formats have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from pipeline.errors import Reason
from pipeline.schema import passthrough_name

CHUNK_BYTES = 32 << 20
"""A chunk closes early at this much text, so that a million 1 MB transcripts are as flat in memory as short ones."""

MAX_COLUMNS = 1024
"""Of a manifest. A row that would add more is rejected: names that vary by row make every chunk a sparse table."""

_MAX_NAME_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

RAW_CHARACTERS = 2048
"""How much of a rejected line is kept."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record, or a record that may not stay: where, why, and how it read."""

    line: int
    reason: Reason
    detail: str
    raw: str | None


class BadName(Exception):
    """A column may not be called so; the message says why."""


@dataclass
class Names:
    """The columns of one manifest, in first-seen order.

    Names that would be one column in the output are one here, under the name seen first: DuckDB and Spark do not tell
    them apart, and if a row that spells one otherwise made the others wrong, one odd line would cost a manifest.
    """

    spelling: dict[str, str] = field(default_factory=dict)  # output name in lower case -> column
    columns: set[str] = field(default_factory=set)

    def add(self, names: Sequence[str]) -> list[str]:
        """Take the names of one record, all or none. Returns: the column of each. Raises: BadName; two of one column."""
        added: dict[str, str] = {}
        taken: dict[str, str] = {}
        for name in names:
            column = name if name in self.columns else self._column(name, added)
            if column in taken:
                raise BadName(f"columns {taken[column]!r} and {name!r} would be one column in the output; rename one")
            taken[column] = name
        if len(self.columns) + len(added) > MAX_COLUMNS:
            raise BadName(f"with this row the manifest has more than {MAX_COLUMNS} columns")
        self.spelling |= added
        self.columns |= set(added.values())
        return list(taken)

    def _column(self, name: str, added: dict[str, str]) -> str:
        if not name.strip():
            raise BadName("a column has no name (pandas: write with index=False)")
        if _CONTROL.search(name) or len(name.encode()) > _MAX_NAME_BYTES:
            raise BadName(f"column name {name[:80]!r} is too long or holds a control character")
        key = passthrough_name(name).lower()
        return self.spelling.get(key) or added.setdefault(key, name)


class Records(Protocol):
    """Some rows of a manifest, and the lines among them that are none."""

    from_csv: bool
    lines: list[int]  # 1-based, of each row
    bad: list[BadLine]
    names: dict[str, None]  # the columns these rows have, in first-seen order

    def raw(self, position: int) -> str:
        """A row as it came, at most `RAW_CHARACTERS` of it."""

    def values(self, name: str) -> Sequence[object]:
        """One column as Python values, None where a row lacks it."""

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """One pass-through column, of the rows at the `kept` positions (None: all)."""


def raw_text(line: bytes) -> str:
    """A line as it goes into a reject: readable whatever its bytes, and short."""
    return line[:RAW_CHARACTERS].decode("utf-8", "replace")

"""Records of a manifest between its format and a table: types and limits shared by the three formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from pipeline.errors import Reason, Reject, Stage
from pipeline.schema import passthrough_name

CHUNK_BYTES = 32 << 20
"""Text size at which a chunk ends early, so that 1 MB transcripts need no more memory than short ones."""

MAX_COLUMNS = 1024
"""Most columns of a manifest. Rows that would add more are rejected, since varying names make every chunk sparse."""

_MAX_NAME_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

RAW_CHARACTERS = 2048
"""Characters kept of a rejected line."""


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A manifest line that was rejected.

    Attributes:
        line: 1-based; the first line of the record in text formats, the row in Parquet.
        raw: the original line (Parquet: as JSON), at most `RAW_CHARACTERS` characters.
        recording_id: the row's id, if it could be read.
        audio: the row's audio reference, absolute if it could be resolved.
    """

    line: int
    cause: Reject
    raw: str | None
    recording_id: str | None = None
    audio: str | None = None


def malformed(detail: str) -> Reject:
    """Return the reject of a line that is not a record."""
    return Reject(Reason.MALFORMED, detail, Stage.MANIFEST)


def bad_field(detail: str) -> Reject:
    """Return the reject of a line with an invalid value or column name."""
    return Reject(Reason.BAD_FIELD, detail, Stage.MANIFEST)


class BadName(Exception):
    """An invalid column name; the message gives the reason."""


@dataclass
class Names:
    """The columns of one manifest, in first-seen order.

    Names that would be one column in the output are one column here, under the first name seen. DuckDB and Spark do not
    distinguish them, and one line with another spelling must not invalidate the manifest.
    """

    spelling: dict[str, str] = field(default_factory=dict)  # output name in lower case -> column
    columns: set[str] = field(default_factory=set)

    def add(self, names: Sequence[str]) -> list[str]:
        """Add the names of one record, all or none, and return the column of each.

        Raises: BadName, also when two names are one column.
        """
        added: dict[str, str] = {}
        taken: dict[str, str] = {}
        for name in names:
            column = name if name in self.columns else self._column(name, added)
            if column in taken:
                raise BadName(
                    f"columns {taken[column]!r} and {name!r} would be the same column in the output; rename one"
                )
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
    """Some rows of a manifest, and the rejected lines among them."""

    from_csv: bool
    lines: list[int]  # 1-based line number of each row
    rejects: list[RejectedLine]
    names: dict[str, None]  # columns of these rows, in first-seen order

    def raw(self, position: int) -> str:
        """Return a row's original text, at most `RAW_CHARACTERS`."""

    def values(self, name: str) -> Sequence[object]:
        """Return one column as Python values, None where a row lacks it."""

    def array(self, name: str, kept: Sequence[int] | None) -> pa.Array:
        """Return one pass-through column of the rows at the `kept` positions (None: all rows)."""


def raw_text(line: bytes) -> str:
    """Return a line as shortened text for a reject; bytes that are not UTF-8 are replaced."""
    return line[:RAW_CHARACTERS].decode("utf-8", "replace")

"""Rows of an Arrow table as Python objects with an attribute for each column."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, overload

import pyarrow as pa

from pipeline.manifest.python_values import plain_row


class Record(SimpleNamespace):
    """One row of a table; its attributes are the table's columns. `vars(record)` is a dict with any column name.

    >>> record = pipeline.Record(emotion="joy", confidence=0.9)
    >>> record.emotion
    'joy'
    >>> vars(record)
    {'emotion': 'joy', 'confidence': 0.9}
    """

    def __repr__(self) -> str:
        fields = (f"{name}={_brief(value)}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(fields)})"


def _brief(value: object) -> str:
    return f"[{len(value)} numbers]" if isinstance(value, list) and len(value) > 16 else repr(value)


class Records(Sequence[Record]):
    """The rows of an Arrow table as a sequence of `Record`, each made when it is asked for.

    >>> records = pipeline.Records(pa.table({"emotion": ["joy", "fear"]}))
    >>> len(records), records[1].emotion, [record.emotion for record in records[:1]]
    (2, 'fear', ['joy'])
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return Record(**plain_row(self._table, position))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} rows of {', '.join(self._table.column_names)}>"

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table.

        >>> pipeline.Records(pa.table({"emotion": ["joy"]})).to_arrow().column_names
        ['emotion']
        """
        return self._table

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas brings no types
        """Return the rows as a pandas data frame.

        >>> pipeline.Records(pa.table({"emotion": ["joy"]})).to_pandas().shape
        (1, 1)
        """
        return self._table.to_pandas()

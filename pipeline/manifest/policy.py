"""Policy of a run: conditions on manifest columns that decide which rows are excluded before any audio is fetched.

The conditions are SQL expressions, evaluated by DuckDB in memory over one chunk of rows at a time. Its access to files, the
network, extensions and Python variables is disabled, and its configuration is locked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.manifest.growth import asked_type
from pipeline.redaction import redacted
from pipeline.schema import REJECT_SCHEMA, ROW_SCHEMA, passthrough_name

if TYPE_CHECKING:
    import duckdb

CAUSES = ("exclude_channel", "exclude", "only")
"""Options that exclude rows. A row is counted under the first that applies to it."""

Causes = NDArray[np.int8]
"""For each row, 0 or the position in `CAUSES` of the option that excludes it, counted from 1."""

_OWN_NAMES = {"recording_id": "id", "offset_s": "offset", "duration_s": "duration"}
_CORE = ("recording_id", "audio", "text", "language", "offset_s", "duration_s", "channel")
_ROW = "__row"
_NAMES_SHOWN = 40
_LOCKED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
"""DuckDB's configuration, which is locked afterwards; see https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Conditions under which a row of the manifest is excluded.

    Attributes:
        exclude: SQL; rows for which it is true are excluded.
        only: SQL; rows for which it is false or null are excluded.
        exclude_channel: channels whose rows are excluded. So are rows without a channel, which use the mean of all channels.
    """

    exclude: str | None = None
    only: str | None = None
    exclude_channel: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Return whether some row may be excluded."""
        return self != Policy()

    def document(self) -> dict[str, Any]:
        """Return the JSON form: the options that are set."""
        options = {
            "exclude": self.exclude,
            "only": self.only,
            "exclude_channel": list(self.exclude_channel),
        }
        return {name: value for name, value in options.items() if value not in (None, [])}

    def shown(self) -> dict[str, Any]:
        """Return the JSON form for reports: URLs in the conditions have no query."""
        return {name: redacted(value) if isinstance(value, str) else value for name, value in self.document().items()}

    @classmethod
    def of(cls, document: object) -> Self:
        """Read the JSON form. Raises: TypeError or ValueError when it is not a policy."""
        if not isinstance(document, Mapping) or not document:
            raise TypeError("a policy is an object with at least one condition")
        channels = document.get("exclude_channel", [])
        sql = [document[name] for name in ("exclude", "only") if name in document]
        if not set(document) <= set(CAUSES) or not all(isinstance(each, str) for each in sql):
            raise ValueError("a policy has other conditions than exclude, only and exclude_channel")
        if not isinstance(channels, list) or not all(type(channel) is int for channel in channels):
            raise TypeError("exclude_channel of a policy is a list of whole numbers")
        return cls(document.get("exclude"), document.get("only"), tuple(channels))

    def check(self) -> None:
        """Check the syntax of the conditions. Raises: ConfigError."""
        with _evaluating():
            for option, sql in self._conditions():
                _parsed(option, sql)

    def _conditions(self) -> Iterator[tuple[str, str]]:
        for option, sql in (("exclude", self.exclude), ("only", self.only)):
            if sql is not None:
                yield option, sql

    @contextmanager
    def evaluator(self) -> Iterator[Evaluator]:
        """Open an evaluator of the conditions."""
        with _evaluating() as connection:
            yield Evaluator(self, connection)


class Evaluator:
    """Evaluator of a policy on tables of rows."""

    def __init__(self, policy: Policy, connection: duckdb.DuckDBPyConnection) -> None:
        self._policy = policy
        self._connection = connection

    def causes(self, rows: pa.Table) -> Causes:
        """Return the cause for which each row is excluded.

        Args:
            rows: the columns of `ROW_SCHEMA` except `manifest` and `line`, and pass-through columns.
        Raises: ConfigError for SQL that is not a condition on the columns, or that fails on a value.
        """
        causes = np.zeros(rows.num_rows, dtype=np.int8)
        for number, option in reversed(list(enumerate(CAUSES, start=1))):
            causes[self._mask(option, rows)] = number
        return causes

    def _mask(self, option: str, rows: pa.Table) -> NDArray[np.bool_]:
        mask = np.zeros(rows.num_rows, dtype=bool)
        if option == "exclude_channel":
            channels = self._policy.exclude_channel
            if channels:
                mask[:] = [channel is None or channel in channels for channel in rows["channel"].to_pylist()]
            return mask
        sql = self._policy.exclude if option == "exclude" else self._policy.only
        if sql is None:
            return mask
        mask[self._matching(option, sql, rows)] = True
        return mask if option == "exclude" else ~mask

    def _matching(self, option: str, sql: str, rows: pa.Table) -> NDArray[np.int64]:
        """Return the positions of the rows for which a condition is true."""
        table = visible_columns(rows)
        numbered = table.append_column(_ROW, pa.array(np.arange(table.num_rows)))
        found = matching(self._connection.from_arrow(numbered), option, sql, (_ROW,))
        return np.asarray(found[_ROW].to_numpy(), dtype=np.int64)


def matching(relation: duckdb.DuckDBPyRelation, option: str, sql: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of the rows of a relation for which a condition is true; null is not true.

    Args:
        option: name of the command-line option with the condition.
    Raises: ConfigError for SQL that is not one condition, or fails. The message quotes no value of a row.
    """
    condition = _parsed(option, sql)
    try:
        kinds = list(map(str, relation.select(condition).types))
        if kinds not in (["BOOLEAN"], ['"NULL"']):
            raise ConfigError(
                f"--{option} {sql!r} has values of type {', '.join(kinds)}; it must be one condition, true or false for each row"
            )
        return relation.filter(condition).select(*columns).to_arrow_table()
    except _duckdb().DataError as error:  # its message quotes a value
        raise ConfigError(
            f"--{option} {sql!r} fails on a value of a row ({type(error).__name__}); TRY_CAST gives null instead"
        ) from None
    except _duckdb().Error as error:
        names = ", ".join(relation.columns[:_NAMES_SHOWN])
        raise ConfigError(
            f"--{option} {sql!r} cannot be evaluated: {_sentence(error)}. The columns are {names}"
        ) from error


def visible_columns(rows: pa.Table) -> pa.Table:
    """Return the columns that a condition can use, under the manifest's names and, where they differ, the output's.

    A pass-through column that the output renames is visible under both names.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for name in _CORE:
        columns[_OWN_NAMES.get(name, name)] = rows[name]
    ours = {*ROW_SCHEMA.names, *REJECT_SCHEMA.names, "raw"}
    taken = {name.lower() for name in columns}
    for name in rows.column_names:
        if name in ours or name.lower() in taken:
            continue
        column = rows[name]
        wanted = asked_type(column.type)
        columns[name] = column if column.type == wanted else column.cast(wanted)
        taken.add(name.lower())
    for name in list(columns):
        bare = name.removeprefix("manifest_")
        if bare != name and bare.lower() not in taken and passthrough_name(bare) != bare:
            columns[bare] = columns[name]
            taken.add(bare.lower())
    return pa.table(columns)


def counted(causes: Causes) -> dict[str, int]:
    """Return the number of excluded rows by option; options that exclude none are left out."""
    totals = np.bincount(causes, minlength=len(CAUSES) + 1)[1:]
    return {option: int(total) for option, total in zip(CAUSES, totals, strict=True) if total}


@contextmanager
def _evaluating() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = _duckdb().connect(config=_LOCKED)
    try:
        connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


def _duckdb() -> Any:  # noqa: ANN401 - a module, imported only by runs with a policy
    import duckdb

    return duckdb


def _parsed(option: str, sql: str) -> Any:  # noqa: ANN401 - DuckDB's expression
    duckdb = _duckdb()
    try:
        return duckdb.SQLExpression(sql)
    except duckdb.Error as error:
        raise ConfigError(f"--{option} {sql!r} is not one SQL expression: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".!")

"""The condition for rows that are older than a number of days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipeline.dataset.reader import Rows, quoted
from pipeline.errors import ConfigError, did_you_mean
from pipeline.schema import ROW_SCHEMA


def expired(rows: Rows, days: int, by: str | None, *, now: datetime | None = None) -> str:
    """Return the SQL condition for rows that are more than `days` old.

    Args:
        by: column with the date of a row: a date, a timestamp, or a text in ISO 8601; None for the time at which the run
            was planned. Rows without a date are kept.
    Raises: ConfigError for a column that does not exist.
    """
    limit = (now or datetime.now(UTC)) - timedelta(days=days)
    if by is None:
        old = [plan.plan for plan in rows.plans if datetime.fromisoformat(plan.created_at) < limit]
        return " OR ".join(["false", *(f"run_id = '{name}'" for name in old)])
    known = [*rows.schema().names, *ROW_SCHEMA.names]
    if by not in known:
        raise ConfigError(f"--by {by}: the output has no such column{did_you_mean(by, known)}")
    return f"try_cast({quoted(by)} AS TIMESTAMP) < TIMESTAMP '{limit:%Y-%m-%d %H:%M:%S}'"

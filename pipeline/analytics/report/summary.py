"""Report of a summary table written by `jobs.summarize --to`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.report import plots
from pipeline.analytics.report.page import Page, Section, ask, formatted, listed
from pipeline.config.further import BY_MODEL
from pipeline.dataset.reader import asking, quoted
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS, EMOTIONS
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import open_folder_of

if TYPE_CHECKING:
    import duckdb
    from markupsafe import Markup

_GROUPS = 30
_NEEDED = {"recordings", "utterances", "speech_s", "share", "confidence"}


def summary_page(file: str) -> Page:
    """Return the report of one table. Raises: ConfigError for other tables, JobError when it cannot be read."""
    store, name = open_folder_of(file)
    with reaching(store):
        try:
            with store.open(name) as content:
                table = pq.read_table(content)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{without_query(file)} is not a table of jobs.summarize --to: {error}") from error
    if missing := sorted(_NEEDED - set(table.column_names)):
        raise ConfigError(
            f"{without_query(file)} is not a table of jobs.summarize --to: it has no {', '.join(missing)}"
        )
    by = table.column_names[: table.column_names.index("recordings")]
    share_columns = ", ".join(f"share.{emotion} AS {emotion}" for emotion in EMOTIONS)
    means = [f"mean_{name}" for name in DIMENSIONS if f"mean_{name}" in table.column_names]
    dimensions = "".join(f", {mean}" for mean in means if table[mean].null_count < table.num_rows)
    query = f"""SELECT {_names(by)},
    recordings, utterances, speech_s, confidence AS mean_confidence, {share_columns}{dimensions}
FROM groups ORDER BY utterances DESC, {", ".join(map(str, range(1, len(by) + 1)))} LIMIT {_GROUPS}"""
    further = [field.name for field in table.field(BY_MODEL).type] if BY_MODEL in table.column_names else []
    with asking(groups=table) as connection:
        names, rows = ask(connection, query)
        others = [_further(connection, name, by) for name in further]
        _, totals = ask(connection, "SELECT count(*), sum(utterances)::BIGINT, sum(speech_s) / 3600 FROM groups")
    ((groups, utterances, hours),) = totals
    svg, alt = _stacks(rows, len(by), 4, "groups")
    note = f"The {_GROUPS} largest groups of {groups:,}." if groups > _GROUPS else ""
    return Page(
        title=f"Summary by {', '.join(by)}",
        subtitle=without_query(file),
        facts={
            "groups": formatted(groups),
            "utterances": formatted(utterances or 0),
            "hours of speech": formatted(round(hours or 0.0, 3)),
        },
        sections=[
            Section("groups", "Emotions by group", names, rows, query, note, svg, alt, cells=_cells(len(by) + 4)),
            *others,
        ],
        digits=3,
    )


def _further(connection: duckdb.DuckDBPyConnection, model: str, by: Sequence[str]) -> Section:
    """Return the section of a further model, with the same groups as the main one's."""
    of = f"{BY_MODEL}.{model}"
    share_columns = ", ".join(f"{of}.share.{emotion} AS {emotion}" for emotion in EMOTIONS)
    means = ", ".join(f"{of}.mean_{name} AS mean_{name}" for name in DIMENSIONS)
    query = f"""SELECT {_names(by)}, utterances, {of}.confidence AS mean_confidence,
    {of}.agreement AS agreement, {share_columns}, {means}
FROM groups ORDER BY utterances DESC, {", ".join(map(str, range(1, len(by) + 1)))} LIMIT {_GROUPS}"""
    names, rows = ask(connection, query)
    svg, alt = _stacks(rows, len(by), 3, f"groups-{model}")
    note = f"Further model {model}. Agreement: share of its emotions that are those of the main model, where both give one."
    title = f"{model}: emotions by group"
    return Section(f"groups-{model}", title, names, rows, query, note, svg, alt, cells=_cells(len(by) + 3))


def _names(by: Sequence[str]) -> str:
    return ", ".join(f"coalesce({quoted(each)}::VARCHAR, '(none)') AS {quoted(each)}" for each in by)


def _cells(first: int) -> range:
    return range(first, first + len(EMOTIONS))


def _stacks(rows: Sequence[Sequence[Any]], keys: int, others: int, name: str) -> tuple[Markup | None, str]:
    """Draw the shares of the emotions, which follow `keys` and `others` columns; return the figure and its description."""
    labels = [" · ".join(formatted(value) for value in row[:keys]) for row in rows]
    first = keys + others
    shares = [[each or 0.0 for each in row[first : first + len(EMOTIONS)]] for row in rows]
    svg = plots.stacks(labels, shares, first=first, name=name) if rows else None
    return svg, listed(labels, [plots.most(each) for each in shares])

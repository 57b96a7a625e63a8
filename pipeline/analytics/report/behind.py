"""Rows behind the marks of figures: which rows each mark counts, and the table that lists them.

A page contains at most about `LIMIT` rows of a table. Of longer tables it contains a sample, in which every mark has rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.analytics.report.page import Section, ask, formatted

if TYPE_CHECKING:
    import duckdb

LIMIT = 1000
"""Number of rows from which a table is sampled."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a section's figure, in terms of the rows that they count.

    Attributes:
        source: name of the table that has the rows.
        key: SQL for the list of keys of a row; the row is behind the mark of each key.
        places: key to place in the section's table, a row `r3` or a cell `r3-c5`, and number of rows behind it.
        where: SQL condition for the rows that are behind any mark.
    """

    source: str
    key: str
    places: Mapping[Hashable, tuple[str, int]]
    where: str = "true"

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows behind each place."""
        return dict(self.places.values())


def rows_marks(source: str, key: str, keys: Sequence[Hashable], counts: Sequence[int], where: str = "true") -> Marks:
    """Return marks of which each was drawn from a row of the section's table, in its order."""
    pairs = enumerate(zip(keys, counts, strict=True))
    return Marks(source, key, {each: (f"r{row}", count) for row, (each, count) in pairs}, where)


@dataclass(frozen=True, slots=True)
class Listing:
    """A table whose rows are to be listed.

    Attributes:
        source, identity: name of the table, and its column of unique values.
        columns: SQL for the columns of the list.
        order: SQL for their order.
        noun: word for the rows.
    """

    name: str
    title: str
    source: str
    identity: str
    columns: str
    order: str
    noun: str


def listing(connection: duckdb.DuckDBPyConnection, listing: Listing, sections: Iterable[Section]) -> Section | None:
    """Return the section that lists rows behind the marks of the other sections; None if there is no row.

    Costs a pass over the columns of the keys for each section with marks, and one over the columns of the list.
    """
    marked = [(section.name, section.marks) for section in sections]
    wanted = [(name, marks) for name, marks in marked if marks is not None and marks.source == listing.source]
    ((total,),) = connection.sql(f"SELECT count(*) FROM {listing.source}").fetchall()
    if not total:
        return None
    sampled = total > LIMIT
    least = max(1, LIMIT // (1 + sum(len(marks.places) for _, marks in wanted)))
    chosen = _sample(listing, [marks for _, marks in wanted], least) if sampled else ""
    rest = f"\nFROM {listing.source}{chosen}\nORDER BY {listing.order}"
    keys = "".join(f", CASE WHEN {marks.where} THEN {marks.key} END" for _, marks in wanted)
    names, answers = ask(connection, f"SELECT {listing.columns}{keys}{rest}")
    width = len(names) - len(wanted)
    members = [
        " ".join(
            f"{name}-{marks.places[key][0]}"
            for (name, marks), found in zip(wanted, answer[width:], strict=True)
            for key in map(_hashable, found or ())
            if key in marks.places
        )
        for answer in answers
    ]
    if sampled:
        note = (
            f"A sample of {formatted(len(answers))} of {formatted(total)} {listing.noun}: at least {least} behind each mark that "
            "has as many."
        )
    else:
        note = f"All {formatted(total)} {listing.noun}." if total > 1 else f"The only one of the {listing.noun}."
    rows = [answer[:width] for answer in answers]
    query = f"SELECT {listing.columns}{rest}"
    return Section(listing.name, listing.title, names[:width], rows, query, note, members=members)


def _sample(listing: Listing, marks: Sequence[Marks], least: int) -> str:
    """Return SQL that keeps a sample: by their hashes, the first `least` rows of the table and of each mark."""
    identity = listing.identity
    chosen = f"SELECT unnest(arg_min({identity}, hash({identity}), {least})) AS {identity} FROM"
    each = [
        f"{chosen} (SELECT {identity}, unnest({of.key}) AS key FROM {of.source} WHERE {of.where}) GROUP BY key"
        for of in marks
    ]
    union = "\n    UNION ".join([f"{chosen} {listing.source}", *each])
    return f"\nSEMI JOIN ({union}) USING ({identity})"


def _hashable(key: Any) -> Hashable:  # noqa: ANN401 - whatever SQL returns
    return tuple(key) if isinstance(key, list) else key

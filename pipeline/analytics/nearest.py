"""Exact nearest neighbours by the cosine of an embedding, in one pass over the files that keeps only the best rows.

Decoding Parquet takes most of the time, so only the necessary columns are read. Without a condition, Arrow's batches
are used as numpy matrices without a copy, and the columns to show are read only from the files of the best rows.
Conditions are evaluated by DuckDB, which skips partitions and row groups that cannot match.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.analytics.search import Query
from pipeline.dataset.reader import Rows, asking, column_path, quoted, reading
from pipeline.models import roles
from pipeline.pins import languages

SHOWN = ("utterance_id", "audio", "start_s", "end_s", "emotion", "confidence", "text")
SIMILARITY = "similarity"


def shown_columns(rows: Rows) -> tuple[str, ...]:
    """Return the columns that a search shows by default: without the text where the output has no words."""
    return tuple(name for name in SHOWN if name != "text" or rows.has_words)


def nearest(
    rows: Rows, query: Query, *, top: int, where: str | None = None, columns: Sequence[str] = SHOWN
) -> pa.Table:
    """Return the `top` nearest utterances, nearest first, with their `similarity` (cosine, -1 to 1).

    Costs one pass over the embedding column. Memory: Arrow's read-ahead, independent of the number of rows.
    Raises: ConfigError for a missing column or an invalid condition.
    """
    paths = {name: column_path(name, rows) for name in columns}
    if where is not None:
        return _filtered(rows, query, top, where, paths)
    with reading():
        return _with_columns(rows, _streamed(rows, query, top), paths)


def condition(query: Query, where: str | None) -> str:
    """Return the SQL condition for the rows that can be results."""
    parts = [
        f"model = {_literal(query.model)}",
        f"utterance_id <> {_literal(query.itself)}",
        f"{query.column} IS NOT NULL",
    ]
    return " AND ".join([*parts, *([f"({where})"] if where else [])])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _filtered(rows: Rows, query: Query, top: int, where: str, columns: Mapping[str, tuple[str, ...]]) -> pa.Table:
    similarity = f"array_cosine_similarity({quoted(query.column)}, $vector::FLOAT[{len(query.vector)}])"
    sql = f"""
    SELECT {SIMILARITY}, {", ".join(f"{'.'.join(map(quoted, path))} AS {quoted(name)}" for name, path in columns.items())}
    FROM (SELECT *, {similarity} AS {SIMILARITY} FROM utterances WHERE {condition(query, where)})
    WHERE NOT isnan({SIMILARITY}) ORDER BY {SIMILARITY} DESC, utterance_id LIMIT {top:d}
    """
    with asking(utterances=rows.utterances()) as connection:
        return connection.sql(sql, params={"vector": query.vector.tolist()}).to_arrow_table()


Best = list[tuple[float, str, str]]
"""Results as (similarity, negated so that the nearest sorts first; utterance id; file)."""


def _streamed(rows: Rows, query: Query, top: int) -> Best:
    models = {
        roles.fingerprint(plan.models, plan.settings, language)
        for plan in rows.plans
        for language in languages(plan.models)
    }
    # with a single model no filter is needed, and a filter would copy every embedding
    only = None if models == {query.model} else ds.field("model") == query.model
    direction = query.vector / max(np.linalg.norm(query.vector), np.finfo(np.float32).tiny)
    best: Best = []
    scanner = rows.utterances().scanner(columns=[query.column, "utterance_id", "__filename"], filter=only)
    for batch in scanner.to_batches():
        embedded = batch if not batch.column(0).null_count else batch.filter(batch.column(0).is_valid())
        if not embedded.num_rows:
            continue
        similarity = _cosines(embedded.column(0), direction)
        better = np.flatnonzero(similarity > (-best[-1][0] if len(best) == top else -np.inf))  # false for NaN
        if len(better) > top + 1:  # one more, because the query utterance may be included
            better = better[np.argpartition(-similarity[better], top)[: top + 1]]
        names, files = (embedded.column(place).take(pa.array(better)).to_pylist() for place in (1, 2))
        candidates = zip((-similarity[better]).tolist(), names, files, strict=True)
        best = sorted([*best, *(each for each in candidates if each[1] != query.itself)])[:top]
    return best


def _cosines(embeddings: pa.FixedSizeListArray, direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines with a unit vector: float32 [N], NaN for zero embeddings."""
    matrix = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(matrix @ direction / np.sqrt(np.einsum("ij,ij->i", matrix, matrix)))


def _with_columns(rows: Rows, best: Best, columns: Mapping[str, tuple[str, ...]]) -> pa.Table:
    """Read the requested columns of the results, in their order, from the files that contain them."""
    wanted = defaultdict(list)
    for _, name, file in best:
        wanted[file].append(name)
    dataset = rows.utterances()
    read = {"utterance_id": pc.field("utterance_id"), **{name: pc.field(*path) for name, path in columns.items()}}
    tables = [
        file.to_table(schema=dataset.schema, columns=read, filter=ds.field("utterance_id").isin(wanted[file.path]))
        for file in dataset.get_fragments()
        if file.path in wanted
    ]
    table = pa.concat_tables(tables) if tables else ds.dataset(dataset.schema.empty_table()).to_table(columns=read)
    places = {name: place for place, name in enumerate(table["utterance_id"].to_pylist())}
    ordered = table.take(pa.array([places[name] for _, name, _ in best], pa.int64())).select(list(columns))
    return ordered.add_column(0, SIMILARITY, pa.array([-negated for negated, _, _ in best], pa.float32()))

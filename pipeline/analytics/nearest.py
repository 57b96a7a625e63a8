"""The best of all rows by the cosine of an embedding: exact, in one pass over the files, keeping nothing but the best.

Decoding Parquet is what takes the time, so nothing else is read for the rows that do not make it: without a condition Arrow's
batches are numpy matrices as they come, and the columns to show are read of the files of the best alone. A condition is DuckDB's
to answer, which passes over partitions and row groups that cannot meet it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.analytics.search import Query
from pipeline.dataset.reader import Rows, asking, quoted, reading
from pipeline.errors import ConfigError, did_you_mean
from pipeline.models import roles
from pipeline.pins import languages

SHOWN = ("utterance_id", "audio", "start_s", "end_s", "emotion", "confidence", "text")
SIMILARITY = "similarity"


def nearest(
    rows: Rows, query: Query, *, top: int, where: str | None = None, columns: Sequence[str] = SHOWN
) -> pa.Table:
    """The `top` nearest utterances, nearest first, with their `similarity` (cosine, -1 to 1).

    Costs one pass over the embedding column. Memory: what Arrow reads ahead, whatever the number of rows.
    Raises: ConfigError for a column or condition that the rows do not have.
    """
    for name in columns:
        if name not in rows.schema().names:
            raise ConfigError(f"the output has no column {name!r}{did_you_mean(name, rows.schema().names)}")
    if where is not None:
        return _asked(rows, query, top, where, columns)
    with reading():
        return _shown(rows, _streamed(rows, query, top), columns)


def condition(query: Query, where: str | None) -> str:
    """Which rows can be answers, in SQL."""
    parts = [
        f"model = {_literal(query.model)}",
        f"utterance_id <> {_literal(query.itself)}",
        f"{query.column} IS NOT NULL",
    ]
    return " AND ".join([*parts, *([f"({where})"] if where else [])])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _asked(rows: Rows, query: Query, top: int, where: str, columns: Sequence[str]) -> pa.Table:
    similarity = f"array_cosine_similarity({quoted(query.column)}, $vector::FLOAT[{len(query.vector)}])"
    sql = f"""
    SELECT {SIMILARITY}, {", ".join(map(quoted, columns))}
    FROM (SELECT *, {similarity} AS {SIMILARITY} FROM utterances WHERE {condition(query, where)})
    WHERE NOT isnan({SIMILARITY}) ORDER BY {SIMILARITY} DESC, utterance_id LIMIT {top:d}
    """
    with asking(utterances=rows.utterances()) as connection:
        return connection.sql(sql, params={"vector": query.vector.tolist()}).to_arrow_table()


Found = list[tuple[float, str, str]]
"""Similarity, negated so that the nearest sorts first; utterance id; the file it lies in."""


def _streamed(rows: Rows, query: Query, top: int) -> Found:
    models = {
        roles.fingerprint(plan.models, plan.settings, language)
        for plan in rows.plans
        for language in languages(plan.models)
    }
    # of one model alone nothing is to be filtered, which would copy every embedding
    only = None if models == {query.model} else ds.field("model") == query.model
    direction = query.vector / max(np.linalg.norm(query.vector), np.finfo(np.float32).tiny)
    best: Found = []
    scanner = rows.utterances().scanner(columns=[query.column, "utterance_id", "__filename"], filter=only)
    for batch in scanner.to_batches():
        there = batch if not batch.column(0).null_count else batch.filter(batch.column(0).is_valid())
        if not there.num_rows:
            continue
        similarity = _cosines(there.column(0), direction)
        better = np.flatnonzero(similarity > (-best[-1][0] if len(best) == top else -np.inf))  # NaN is not
        if len(better) > top + 1:  # one more, since the utterance itself may be among them
            better = better[np.argpartition(-similarity[better], top)[: top + 1]]
        names, files = (there.column(place).take(pa.array(better)).to_pylist() for place in (1, 2))
        found = zip((-similarity[better]).tolist(), names, files, strict=True)
        best = sorted([*best, *(each for each in found if each[1] != query.itself)])[:top]
    return best


def _cosines(embeddings: pa.FixedSizeListArray, direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """With a vector of length 1; NaN for embeddings without a direction. Returns: float32 [N]."""
    matrix = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(matrix @ direction / np.sqrt(np.einsum("ij,ij->i", matrix, matrix)))


def _shown(rows: Rows, found: Found, columns: Sequence[str]) -> pa.Table:
    """The columns of what was found, in its order, read of the files that hold it."""
    wanted = defaultdict(list)
    for _, name, file in found:
        wanted[file].append(name)
    dataset = rows.utterances()
    read = list(dict.fromkeys([*columns, "utterance_id"]))
    tables = [
        file.to_table(schema=dataset.schema, columns=read, filter=ds.field("utterance_id").isin(wanted[file.path]))
        for file in dataset.get_fragments()
        if file.path in wanted
    ]
    table = pa.concat_tables(tables) if tables else dataset.schema.empty_table().select(read)
    places = {name: place for place, name in enumerate(table["utterance_id"].to_pylist())}
    ordered = table.take(pa.array([places[name] for _, name, _ in found], pa.int64())).select(list(columns))
    return ordered.add_column(0, SIMILARITY, pa.array([-negated for negated, _, _ in found], pa.float32()))

"""Pass-through columns: no mixture of types loses, rounds or renames a value."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, Reason
from pipeline.manifest.read import conform, read_manifest, unify
from pipeline.schema import ROW_SCHEMA
from tests.support.cases import case
from tests.support.manifests import jsonl, read


def test_label_and_taken_names(tmp_path) -> None:
    """Fails if a manifest's own label, or a column named like one of ours, is dropped or overwrites ours."""
    path = jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", "label": "joy", "manifest": "x", "Emotion": 1, "other": None})
    rows, _ = read(path)
    extra = [name for name in rows.column_names if name not in ROW_SCHEMA.names]
    assert extra == ["manifest_label", "manifest_manifest", "manifest_Emotion", "other"]
    assert rows["manifest"].to_pylist() == [str(path)]
    assert rows.schema.field("other").type == pa.null()


COLUMNS = [
    # values over two chunks, type, values out
    ([[1, None], [2]], pa.int64(), [1, None, 2]),
    ([[1], [0.5]], pa.float64(), [1.0, 0.5]),
    ([[1, 0.5], [2]], pa.float64(), [1.0, 0.5, 2.0]),
    ([[2**53 + 1], [0.5]], pa.string(), ["9007199254740993", "0.5"]),
    ([[2**53 + 1, 0.5], [1]], pa.string(), ["9007199254740993", "0.5", "1"]),
    ([[2**70], [1]], pa.string(), [str(2**70), "1"]),
    ([[None], ["x"]], pa.string(), [None, "x"]),
    ([[True], [None]], pa.bool_(), [True, None]),
    ([[True], [1]], pa.string(), ["true", "1"]),
    ([[1, "x", ["é"]], [{"a": None}]], pa.string(), ["1", "x", '["é"]', '{"a":null}']),
    ([["007"], [7]], pa.string(), ["007", "7"]),
    ([[[1, 2]], [[0.5]]], pa.list_(pa.float64()), [[1.0, 2.0], [0.5]]),
    ([[[2**53 + 1]], [[0.5]]], pa.string(), ["[9007199254740993]", "[0.5]"]),
    ([[[]], [["x"]]], pa.list_(pa.string()), [[], ["x"]]),
    ([[{"a": 1}], [{"b": ["x"]}]], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
     [{"a": 1, "b": None}, {"a": None, "b": ["x"]}]),
    ([[{"a": {"b": 1}}], [{"a": {"b": 0.5}}]], pa.struct([("a", pa.struct([("b", pa.float64())]))]),
     [{"a": {"b": 1.0}}, {"a": {"b": 0.5}}]),
    ([[{"a": 1}], [{"a": "x"}]], pa.string(), ['{"a":1}', '{"a":"x"}']),
    ([[{"a": 1}], [{"A": 1}]], pa.string(), ['{"a":1}', '{"A":1}']),
    ([[{}], [{"a": 1}]], pa.string(), ["{}", '{"a":1}']),
    ([[{"a": {}}], []], pa.string(), ['{"a":{}}']),
    ([[{str(i): i} for i in range(300)], []], pa.string(), [f'{{"{i}":{i}}}' for i in range(300)]),
]  # fmt: skip


def test_types_over_chunks(tmp_path) -> None:
    """Fails if a column whose values differ in type is lost, rounded, or typed by its first chunk."""
    for chunks, kind, expected in COLUMNS:
        with case(chunks, kind, expected):
            tables = []
            for number, values in enumerate(chunks):
                path = jsonl(tmp_path / f"{number}.jsonl", *({"audio": "a.wav", "x": value} for value in values))
                tables += [chunk.rows for chunk in read_manifest(str(path))]
            schema = unify(table.schema for table in tables)
            assert unify([schema, schema]).equals(schema, check_metadata=True)
            stepwise = tables[0].schema
            for table in tables[1:]:
                stepwise = unify([stepwise, table.schema])
            assert stepwise.equals(schema, check_metadata=True)
            whole = pa.concat_tables([conform(table, schema) for table in tables])
            assert (whole.schema.field("x").type, whole["x"].to_pylist()) == (kind, expected)
            pq.write_table(whole, tmp_path / "out.parquet")
            assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abAB", max_size=2), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(json_values, min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_value_is_lost(tmp_path_factory, chunks) -> None:
    """Fails if some mixture of JSON values makes the reader, `unify` or Parquet fail, or changes a value."""
    folder = tmp_path_factory.mktemp("values")
    tables = []
    for number, values in enumerate(chunks):
        path = jsonl(folder / f"{number}.jsonl", *({"audio": "a.wav", "x": value} for value in values))
        tables += [chunk.rows for chunk in read_manifest(str(path))]
    schema = unify(table.schema for table in tables)
    whole = pa.concat_tables([conform(table, schema) for table in tables])
    pq.write_table(whole, folder / "out.parquet")
    for given_value, kept in zip([v for vs in chunks for v in vs], whole["x"].to_pylist(), strict=True):
        if isinstance(kept, str) and not isinstance(given_value, str):
            assert _bare(json.loads(kept)) == _bare(given_value)
        else:
            assert _bare(kept) == _bare(given_value)


def _bare(value: object) -> object:
    """Without the nulls a struct has for the keys of its neighbours."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def test_conform_refuses_what_it_would_lose(tmp_path) -> None:
    """Fails if a column the schema lacks, or a value its type cannot hold, disappears in silence."""
    chunk = next(read_manifest(str(jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", "x": 2**53 + 1}))))
    with pytest.raises(ConfigError, match="'x'"):
        conform(chunk.rows, ROW_SCHEMA)
    with pytest.raises(ConfigError, match="'x'"):
        conform(chunk.rows, pa.schema([*ROW_SCHEMA, pa.field("x", pa.float64())]))
    assert conform(
        chunk.rows.select(["audio"]), pa.schema([pa.field("y", pa.int8()), ROW_SCHEMA.field("audio")])
    ).equals(pa.table({"y": pa.nulls(1, pa.int8()), "audio": chunk.rows["audio"]}))


def test_columns_that_differ_in_case(tmp_path) -> None:
    """Fails if two columns come out that DuckDB and Spark cannot tell apart, or a row that has both loses one."""
    path = jsonl(tmp_path / "a.jsonl", {"audio": "a.wav", "Take": 1}, {"audio": "b.wav", "take": 2}, {"AUDIO": "c.wav"},
                 {"audio": "a.wav", "take": 1, "TAKE": 2}, {"audio": "a.wav", "AUDIO": "b.wav"},
                 {"audio": "a.wav", "line": 1, "manifest_line": 2},
                 {"audio": "a.wav", "": 1}, {"audio": "a.wav", "x\n": 1}, {"audio": "a.wav", "n" * 300: 1})  # fmt: skip
    rows, rejects = read(path)
    assert rows["Take"].to_pylist() == [1, 2, None]
    assert [Path(audio).name for audio in rows["audio"].to_pylist()] == ["a.wav", "b.wav", "c.wav"]
    assert [(reject.line, reject.cause.reason) for reject in rejects] == [(n, Reason.BAD_FIELD) for n in range(4, 10)]


@pytest.mark.parametrize("first", [
    {"ID": "x", "AUDIO": "x.wav", "TAKE": 3}, {"id": "x", "audio": "x.wav", "Take": [1]},
    {"id": "x", "audio": "x.wav", "manifest_line": 7}, {"ID": 1.5}, {"TAKE": 1},
])  # fmt: skip
def test_one_line_that_spells_its_columns_otherwise_costs_no_other(tmp_path, first) -> None:
    """Fails if all rows after such a line are rejected for spelling theirs unlike it, as they were."""
    good = [{"id": f"r{n}", "audio": f"{n}.wav", "take": n, "line": n} for n in range(3)]
    rows, rejects = read(jsonl(tmp_path / "m.jsonl", first, *good))
    assert not {reject.line for reject in rejects} & {2, 3, 4}
    kept = [{name.lower(): value for name, value in row.items()} for row in rows.to_pylist() if row["line"] > 1]
    assert [row["recording_id"] for row in kept] == ["r0", "r1", "r2"]
    assert [row["take"] for row in kept] in ([0, 1, 2], ["0", "1", "2"])
    assert [row["manifest_line"] for row in kept] == [0, 1, 2]


def test_manifests_may_spell_their_columns_otherwise(tmp_path) -> None:
    """Fails if a second manifest's `TAKE` is refused, lost or a second column beside the first one's `take`."""
    tables = [
        next(read_manifest(str(jsonl(tmp_path / f"{name}.jsonl", {"audio": "a.wav", name: value})))).rows
        for name, value in (("take", 1), ("TAKE", 2.5))
    ]
    schema = unify(table.schema for table in tables)
    assert [name for name in schema.names if name.lower() == "take"] == ["take"]
    whole = pa.concat_tables([conform(table, schema) for table in tables])
    assert whole["take"].to_pylist() == [1.0, 2.5]


def test_too_many_columns(tmp_path) -> None:
    """Fails if rows that each name a column of their own make a table as wide as the manifest is long."""
    path = jsonl(tmp_path / "m.jsonl", *({"audio": "a.wav", f"k{i}": i} for i in range(3000)), {"audio": "b.wav"})
    rows, rejects = read(path)
    assert (rows.num_columns, len(rejects)) == (len(ROW_SCHEMA) + 1023, 3000 - 1023)
    assert rows["audio"][-1].as_py() == str(tmp_path / "b.wav")

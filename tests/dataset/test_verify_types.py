"""Deep audits of outputs whose plans disagree on the types or names of columns, or whose values were cast."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.compatibility import settle_types
from pipeline.dataset.parts import receipt_of, write_part
from pipeline.storage.store import open_store
from tests.support.nights import status
from tests.support.outputs import annotate, plan_rows, publish_plan


def two_plans(folder: Path, first: list[object], second: list[object], name: str = "take") -> Path:
    store = open_store(str(folder / "out"))
    for prefix, values in (("a", first), ("b", second)):
        rows = [{"id": f"{prefix}{n}", "audio": f"/a/{n}.wav", "text": "t", "speaker": "s", name: value}
                for n, value in enumerate(values)]  # fmt: skip
        plan = plan_rows(store, folder / prefix, rows)
        annotate(str(folder / "out"), plan)
        publish_plan(store, plan)
    return folder / "out"


@pytest.mark.parametrize(("first", "second"), [([1, 2], ["007"]), ([{"a": 1}], [{"a": "x"}]), ([1], [[1]])])
def test_deep_verify_sees_types_that_differ_between_plans(tmp_path, monkeypatch, first, second):
    """Fails if an output whose files give one column two types is called sound."""
    monkeypatch.setattr("tests.support.outputs.settle_types", lambda extra, _: settle_types(extra, []))
    state, lines = status(two_plans(tmp_path, first, second))
    assert state == "violated" and any("DATASET_MIXED" in line and "take" in line for line in lines)


def test_deep_verify_sees_names_that_differ_in_case(tmp_path, monkeypatch):
    """Fails if `Take` beside an earlier `take` is called sound."""
    spelling = {"take": "Take"}

    def respelled(extra, plans):
        names = [spelling.get(name, name) if list(plans) else name for name in extra.names]
        return pa.schema([field.with_name(name) for field, name in zip(extra, names, strict=True)])

    monkeypatch.setattr("tests.support.outputs.settle_types", respelled)
    state, lines = status(two_plans(tmp_path, [1], [2]))
    assert state == "violated" and any("DATASET_MIXED" in line and "Take" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "as_it_was"),
    [
        ([30.5, 31.0], [30.0, 31.0]),
        (["007", "x"], ["7", "x"]),
        ([True, False], [True, True]),
        ([{"a": 1, "b": 2}, {"a": 2, "b": 3}], [{"a": 1, "b": None}, {"a": 2, "b": 3}]),
    ],
)
def test_deep_verify_sees_a_part_whose_values_were_cast(tmp_path, values, as_it_was):
    """Fails if a part that holds other values than its plan's rows, as casts made them, is called sound."""
    output = two_plans(tmp_path, values, values)
    path = next((output / "utterances").rglob("000002-000000.parquet"))
    with pq.ParquetFile(path) as file:
        table, receipt = file.read(), receipt_of(file.metadata.metadata)
    column = pa.array(as_it_was, table["take"].type)
    cast = table.set_column(table.schema.get_field_index("take"), table.schema.field("take"), column)
    path.unlink()
    assert write_part(open_store(str(output)), str(path.relative_to(output)), cast, receipt)
    state, lines = status(output)
    assert state == "violated" and any("PLAN_COLUMNS" in line for line in lines)

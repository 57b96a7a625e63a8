from __future__ import annotations

import re
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pytest

import pipeline
from pipeline.analytics.nearest import nearest
from pipeline.analytics.search import query_by_utterance
from tests.support import outputs
from tests.support.corpus import ROOT

PAGE = (ROOT / "docs" / "readers.md").read_text(encoding="utf-8")


def blocks(section, language="python"):
    """Return the code blocks of a section of docs/readers.md."""
    body = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", body, re.DOTALL)
    assert found
    return found


def run(code):
    names: dict[str, object] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output with a null partition value, made once: no test of this module changes it."""
    folder = tmp_path_factory.mktemp("readers")
    with pytest.MonkeyPatch.context() as patch:
        records = [{**row, "speaker": None if row["take"] == 3 else row["speaker"]} for row in outputs.FIRST]
        patch.setattr(outputs, "FIRST", records)
        outputs.finished_output(str(folder / "out"), folder / "m")
    return folder


@pytest.fixture
def beside(output, monkeypatch):
    """The folder of the output as the current one, as the page has it."""
    monkeypatch.chdir(output)
    return output


def test_pandas_reads_a_null_partition_value(beside):
    """Fails if a way that docs/readers.md gives loses rows or the null, or if pandas no longer needs it."""
    with pytest.raises(ValueError, match="Cannot yet unify dictionaries with nulls"):
        pd.read_parquet("out/utterances")
    for block in blocks("pandas"):
        frame = run(block)["frame"]
        assert len(frame) == 15 and frame["speaker"].isna().sum() == 1
        assert set(frame["speaker"].dropna()) == {"a", "b", "c"}


def test_duckdb_compares_embeddings_without_a_cast_of_the_column(beside):
    """Fails if DuckDB gets lists from our reader, or a query of the page finds farther neighbours than `jobs.search`."""
    (block,) = blocks("DuckDB")
    names = run(block)
    rows = pipeline.open_dataset("out")
    first = min(rows.utterances().to_table(columns=["utterance_id"])["utterance_id"].to_pylist())
    exact = nearest(rows, query_by_utterance(rows, first, None), top=2, columns=["utterance_id"])
    expected = pytest.approx([1.0, *exact["similarity"].to_pylist()])  # the ids of equal ones come in any order
    assert [similarity for _, similarity in names["nearest"]] == expected
    connection = duckdb.connect()
    connection.execute("create table one as select $1::FLOAT[] as audio_embedding", [list(names["vector"])])
    (query,) = blocks("DuckDB", "sql")
    assert [similarity for _, similarity in connection.execute(query).fetchall()] == expected


def test_embeddings_are_loaded_into_a_database(beside):
    """Fails if the lines of the page load other vectors than the output has, or arrays whose size is lost."""
    lance_lines, duckdb_lines = blocks("Vector search elsewhere")
    expected = pipeline.open_dataset("out").utterances().to_table(columns=["utterance_id", "audio_embedding"])
    expected = expected.sort_by("utterance_id")["audio_embedding"].to_pylist()
    table = run(lance_lines)["table"]
    assert table.schema.field("audio_embedding").type.list_size == outputs.WIDTH
    assert table.to_table().sort_by("utterance_id")["audio_embedding"].to_pylist() == expected
    run(duckdb_lines)
    loaded = duckdb.connect("voices.duckdb").sql("select audio_embedding from voices order by utterance_id")
    assert str(loaded.types[0]) == f"FLOAT[{outputs.WIDTH}]"
    assert [list(vector) for (vector,) in loaded.fetchall()] == expected
    shutil.rmtree("voices.lance")
    Path("voices.duckdb").unlink()

"""Descriptions of columns in the files of an output, and files with and without them side by side."""

from __future__ import annotations

import io
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.analytics.compact import compact
from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.analytics.summary_columns import MERGED_COLUMNS, SUMMARY_COLUMNS
from pipeline.dataset.parts import encodings
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.schema import REJECT_COLUMNS, UTTERANCE_COLUMNS, utterance_schema
from pipeline.storage.store import open_store
from tests.support.outputs import finished_output


def descriptions(schema: pa.Schema) -> dict[str, str]:
    """Return the descriptions that a schema's fields carry."""
    return {field.name: field.metadata[b"description"].decode() for field in schema if field.metadata}


def defined(columns: dict, schema: pa.Schema) -> dict[str, str]:
    """Return the descriptions that the columns of a schema must have."""
    return {name: columns[name].description for name in schema.names if name in columns}


def strip(path: Path) -> None:
    """Write a part again as earlier versions wrote it: the same rows and receipt, without descriptions."""
    with pq.ParquetFile(path) as file:
        table, footer = file.read(), file.metadata.metadata
    schema = pa.schema([field.remove_metadata() for field in table.schema])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, **encodings(schema)) as writer:
        writer.write_table(pa.table(table.columns, schema=schema))
        writer.add_key_value_metadata({key: value for key, value in footer.items() if key != b"ARROW:schema"})
    path.write_bytes(buffer.getvalue())
    assert not descriptions(pq.read_schema(path))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    return tmp_path / "out"


def test_every_file_of_a_new_output_describes_its_columns(output: Path) -> None:
    """Fails if parts, rejects, summaries or compacted files lose a description, or a manifest's column gets one."""
    rows = finished_rows(open_store(str(output)))
    groups = parse_groups(["speaker"], rows.schema().names)
    assert list(summarize(rows, groups)) and list(compact(rows, target_bytes=2**20))
    for folder, columns in (
        ("utterances", UTTERANCE_COLUMNS),
        ("compacted", UTTERANCE_COLUMNS),
        ("rejects", REJECT_COLUMNS),
        ("summaries", SUMMARY_COLUMNS),
    ):
        files = sorted((output / folder).rglob("*.parquet"))
        assert files
        for file in files:
            schema = pq.read_schema(file)
            assert descriptions(schema) == defined(columns, schema), file
    table = merged(rows.store, groups)
    assert descriptions(table.schema) == defined(MERGED_COLUMNS, table.schema)


def test_a_column_that_a_newer_version_adds_is_not_described_in_an_older_dataset() -> None:
    """Fails if a manifest's own column is taken for ours in a dataset made before we had one of that name."""
    theirs = pa.field("language_prob", pa.string())
    assert utterance_schema({}, "float32", [theirs], version=1).field("language_prob").metadata is None


def test_files_of_earlier_versions_and_new_ones_are_read_together(output: Path) -> None:
    """Fails if the audit, our reader, Arrow, pandas, Polars or DuckDB refuses a folder in which some files lack descriptions."""
    utterances = output / "utterances"
    expected = sorted(ds.dataset(utterances, partitioning="hive").to_table()["utterance_id"].to_pylist())
    parts = sorted(utterances.rglob("*.parquet"))
    for stripped in (parts[0], *parts[-2:]):  # once the first file lacks them, once a later one
        strip(stripped)
    audited = audit(open_store(str(output)), deep=True)
    assert not audited.violations
    tables = {
        "our reader": finished_rows(open_store(str(output))).utterances().to_table(),
        "pyarrow": ds.dataset(utterances, partitioning="hive").to_table(),
        "unified": ds.dataset(utterances, schema=pa.unify_schemas([pq.read_schema(part) for part in parts])).to_table(),
        "reversed": ds.dataset(parts[::-1]).to_table(),
        "pandas": pa.Table.from_pandas(
            pd.read_parquet(utterances)[["utterance_id"]]
        ),  # it returns maps as lists of pairs
        "polars": pl.read_parquet(utterances / "**/*.parquet").to_arrow(),
        "polars scan": pl.scan_parquet(parts).collect().to_arrow(),
        "duckdb": duckdb.sql(f"from read_parquet('{utterances}/**/*.parquet')").to_arrow_table(),
    }
    assert {name: sorted(table["utterance_id"].to_pylist()) for name, table in tables.items()} == dict.fromkeys(
        tables, expected
    )
    assert list(compact(finished_rows(open_store(str(output))), target_bytes=2**20))
    assert len(ds.dataset(output / "compacted", partitioning="hive").to_table()) == len(expected)

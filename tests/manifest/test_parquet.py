"""Parquet manifests: types pass through, and what Parquet readers let by is caught."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, Reason
from pipeline.manifest.read import derived_id
from tests.support.manifests import read


def test_parquet_types_pass_through(tmp_path) -> None:
    """Fails if a Parquet column's type changes on the way, or a dictionary stays encoded."""
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    columns = {
        "day": pa.array([when.date()], pa.date32()),
        "ns": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
        "utc": pa.array([when], pa.timestamp("us", tz="UTC")),
        "price": pa.array([Decimal("1.50")], pa.decimal128(10, 2)),
        "tags": pa.array([["a", None]], pa.list_(pa.string())),
        "box": pa.array([{"x": 1, "y": [1.5]}], pa.struct([("x", pa.int16()), ("y", pa.list_(pa.float32()))])),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "binary": pa.array([b"\xff\0"], pa.binary()),
        "small": pa.array([7], pa.uint8()),
        "kind": pa.array(["x"]).dictionary_encode(),
        "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "void": pa.nulls(1),
    }
    pq.write_table(pa.table({"audio": pa.array(["a.wav"], pa.large_string()), **columns}), tmp_path / "m.parquet")
    rows, rejects = read(tmp_path / "m.parquet")
    assert not rejects
    for name, column in columns.items():
        wanted = column.dictionary_decode() if name == "kind" else column
        assert rows[name].combine_chunks().equals(wanted), name


def test_parquet_known_columns(tmp_path) -> None:
    """Fails if integer ids change, pandas' NaN is taken for a number, or chunk borders lose the row number."""
    table = pa.table(
        {
            "audio": pa.array(["a.wav", None, "c.wav", "d.wav", "e.wav"]).dictionary_encode(),
            "id": pa.array([1, 2, 3, None, 2**63 - 1]),
            "offset": pa.array([0.5, 1.0, float("nan"), None, 2.0], pa.float32()),
            "channel": pa.array([0.0, 1.0, float("nan"), 1.0, 0.5]),
            "duration": pa.array([Decimal("1.5")] * 5),
        }
    )
    pq.write_table(table, tmp_path / "m", row_group_size=2)
    rows, rejects = read(tmp_path / "m", chunk_rows=2)
    assert rows["recording_id"].to_pylist()[:2] == ["1", "3"]
    assert rows["recording_id"][2].as_py() == derived_id(f"{tmp_path}/d.wav", None, 1.5, 1)
    assert rows["offset_s"].to_pylist() == [0.5, None, None]
    assert rows["channel"].to_pylist() == [0, None, 1]
    assert rows["line"].to_pylist() == [1, 3, 4]
    assert [(r.line, r.cause.reason, r.recording_id) for r in rejects] == [
        (2, Reason.BAD_FIELD, "2"), (5, Reason.BAD_FIELD, str(2**63 - 1)),
    ]  # fmt: skip
    assert json.loads(rejects[0].raw)["id"] == 2


@pytest.mark.parametrize(
    ("column", "array"),
    [
        ("id", pa.array([1.5])),
        ("audio", pa.array([{"path": "x"}])),
        ("text", pa.array([1])),
        ("duration", pa.array(["1"])),
    ],
)
def test_parquet_wrong_type(tmp_path, column, array) -> None:
    """Fails if a column whose type is wrong becomes one reject per row instead of one error (M7)."""
    pq.write_table(pa.table({"audio": ["a.wav"]} | {column: array}), tmp_path / "m")
    with pytest.raises(ConfigError, match=f"column '{column}' is .* is expected"):
        read(tmp_path / "m")


def test_parquet_bad_utf8(tmp_path) -> None:
    """Fails if a string that is not UTF-8, which Parquet readers let pass, stops the file or gets through."""
    binary = pa.array([b"good", b"caf\xe9", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    nested = pa.StructArray.from_arrays([text], ["t"])
    pq.write_table(pa.table({"audio": ["a.wav", "b.wav", "c.wav"], "note": text, "n": nested}), tmp_path / "m")
    rows, rejects = read(tmp_path / "m")
    assert rows["note"].to_pylist() == ["good", "fine"]
    assert [(reject.line, reject.cause.reason) for reject in rejects] == [(2, Reason.MALFORMED)]

"""Manifest columns of rare types and names: annotated, verified, and read by everything that reads an output."""

from __future__ import annotations

import datetime
import itertools
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.search import main as search_job
from jobs.summarize import main as summarize_job
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from tests.support.cases import case
from tests.support.manifests import put, read
from tests.support.nights import manifest_of, night, quick, read_everywhere, rejected, status, written

__all__ = ["quick"]

FIVE = Decimal("1.50")
COLUMNS: dict[str, tuple[pa.Array, list[object]]] = {
    # in the manifest; as analyses have it
    "float16": (pa.array([0.5, None], pa.float16()), [0.5, None]),
    "float16 in a list": (pa.array([[1.0, 0.25]], pa.list_(pa.float16())), [[1.0, 0.25]]),
    "float16 in a struct": (pa.array([{"a": 0.5}], pa.struct([("a", pa.float16())])), [{"a": 0.5}]),
    "small decimal256": (pa.array([FIVE, None], pa.decimal256(10, 2)), [FIVE, None]),
    "decimal256": (pa.array([Decimal(f"1{'0' * 44}1.50")], pa.decimal256(50, 2)), [f"1{'0' * 44}1.50"]),
    "decimal256 in a map": (pa.array([[("k", FIVE)]], pa.map_(pa.string(), pa.decimal256(50, 2))), [[("k", "1.50")]]),
    "decimal32": (pa.array([Decimal("1.5")], pa.decimal32(5, 1)), [Decimal("1.5")]),
    "duration": (pa.array([5, None], pa.duration("us")), [5, None]),
    "duration in ns": (pa.array([5], pa.duration("ns")), [5]),
    "durations": (pa.array([[5]], pa.list_(pa.duration("ms"))), [[5]]),
    "time": (pa.array([datetime.time(1, 2, 3, 4)], pa.time64("us")), [datetime.time(1, 2, 3, 4)]),
    "zone": (pa.array([0], pa.timestamp("us", tz="Asia/Tokyo")), [datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)]),
    "uint64": (pa.array([2**63 + 5], pa.uint64()), [2**63 + 5]),
    "binary": (pa.array([b"\xff", None]), [b"\xff", None]),
    "fixed binary": (pa.array([b"abcd"], pa.binary(4)), [b"abcd"]),
    "uuid": (pa.array([b"0123456789abcdef"], pa.uuid()), [b"0123456789abcdef"]),
    "json": (pa.array(['{"a":1}'], pa.json_()), ['{"a":1}']),
    "bool8": (pa.array([1], pa.bool8()), [1]),
    "string view": (pa.array(["x", None], pa.string_view()), ["x", None]),
    "large list": (pa.array([[1], None], pa.large_list(pa.int64())), [[1], None]),
    "list view": (pa.array([[1, 2], None, [], [3]], pa.list_view(pa.int64())), [[1, 2], None, [], [3]]),
    "dictionary": (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
    "dictionaries": (pa.array([["x"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), [["x"]]),
    "vector": (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), [[1.0, 2.0], None]),
    "null in a struct": (pa.array([{"a": None, "b": 1}], pa.struct([("a", pa.null()), ("b", pa.int64())])),
                         [{"a": None, "b": 1}]),
    "lists of nulls": (pa.array([[None], []], pa.list_(pa.null())), [[None], []]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_type_can_be_analysed(tmp_path, quick, name):
    """Fails if a column of a rare type is annotated and then breaks verify, summarize, compact, search, pandas or DuckDB,
    for a night or for two.
    """
    output = tmp_path / "out"
    array, expected = COLUMNS[name]
    night(output, manifest_of(tmp_path / "1", "a", array))
    night(output, manifest_of(tmp_path / "2", "b", array))
    came = {f"b{row}": value for row, value in enumerate(expected)}
    came |= {f"a{row}": value for row, value in enumerate(expected) if row}
    assert read_everywhere(output, "x", "a0") == came


def storage_values(array: pa.Array) -> list[object]:
    return (
        array.cast(array.type.storage_type).to_pylist() if isinstance(array, pa.ExtensionArray) else array.to_pylist()
    )


@pytest.mark.parametrize("name", [name for name, (array, _) in COLUMNS.items() if not pa.types.is_nested(array.type)])
def test_a_partition_of_any_type_can_be_analysed(tmp_path, quick, name):
    """Fails if partitioning by such a column breaks what reads the output. Where a path cannot have its type, it is text."""
    output = tmp_path / "out"
    array, expected = COLUMNS[name]
    night(output, manifest_of(tmp_path / "1", "a", array), partition_by="x")
    night(output, manifest_of(tmp_path / "2", "b", array), partition_by="x")
    found = read_everywhere(output, "x", "a0")
    texts = [None if value is None else str(value) for value in storage_values(array)]
    for row, value in enumerate(expected):
        assert found[f"b{row}"] in (value, texts[row])


FAR = {
    "timestamps": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "dates": pa.array([2**31 - 1, -(2**31)], pa.date32()),
    "times in a list": pa.array([[2**62], []], pa.list_(pa.timestamp("us", tz="UTC"))),
}


@pytest.mark.parametrize("name", FAR)
def test_times_that_python_lacks_are_printed(tmp_path, quick, name, capsys):
    """Fails if a year past 9999, which annotate passes through, ends summarize and search with a traceback."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", FAR[name]))
    assert status(output) == ("sound", [])
    groups = ["--by", "emotion" if pa.types.is_nested(FAR[name].type) else "x"]
    assert summarize_job([str(output), *groups]) == 0
    search = [str(output), "--like", "a0#0000", "--columns", "utterance_id,x"]
    assert search_job(search) == 0 and search_job([*search, "--json"]) == 0
    assert "a1#0000" in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [6000, 0])
def test_a_partition_of_milliseconds_keeps_its_type(tmp_path, quick, fraction):
    """Fails if Arrow cannot parse the six digits that Python writes of a millisecond."""
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, fraction)
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", pa.array([when] * 2, pa.timestamp("ms"))), partition_by="x")
    assert read_everywhere(output, "x", "a0") == {"a1": when}


@pytest.mark.parametrize("column", ["__filename", "__fragment_index", "__batch_index", "__LAST_in_fragment"])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_columns_named_as_arrow_names_its_own(tmp_path, quick, column, form):
    """Fails if such a column crashes planning or reading, or is lost: it is written under another name."""
    output = tmp_path / "out"
    values = ["p", "q"]
    night(output, manifest_of(tmp_path / "1", "a", pa.array(values) if form == "parquet" else values, column))
    night(output, manifest_of(tmp_path / "2", "b", [3], column))
    assert read_everywhere(output, f"manifest_{column}", "a0") == {"a1": "q", "b0": "3"}


def test_a_temporary_folder_with_an_equals_sign_adds_no_column(tmp_path, quick, monkeypatch):
    """Fails if a TMPDIR such as /tmp/job=7 makes a column `job` of every row."""
    folder = tmp_path / "job=7"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    night(tmp_path / "out", manifest_of(tmp_path / "1", "a", [1]))
    assert written(tmp_path / "out") == {"a0": 1}


@pytest.mark.parametrize("content", ["", "\n\n", "id,audio\n", "id,audio,speaker\n"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_empty_manifest_with_a_partition_is_nothing_new(tmp_path, quick, content, earlier):
    """Fails if a night without any recording is refused because nobody can tell its columns."""
    output = tmp_path / "out"
    if earlier:
        night(output, manifest_of(tmp_path / "1", "a", ["s"], "speaker"), partition_by="speaker")
    assert night(output, put(tmp_path / "2.csv", content), partition_by="speaker") == []


def test_an_empty_parquet_manifest_with_a_partition_is_nothing_new(tmp_path, quick):
    """Fails likewise, for a table without rows whose columns have types."""
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "audio": pa.array([], pa.string())}), tmp_path / "m")
    assert night(tmp_path / "out", tmp_path / "m", partition_by="speaker") == []


def test_a_night_of_rejects_alone_is_logged_with_a_partition(tmp_path, quick):
    """Fails if lines that are all broken stop the job, or make a plan that verify calls damaged."""
    output = tmp_path / "out"
    night(output, put(tmp_path / "1.jsonl", '{"id": "a", "audio": 5}\n{"id": \n'), partition_by="speaker")
    assert [row["reason"] for row in pq.ParquetFile(output / "rejects/000001.parquet").read().to_pylist()] == [
        "BAD_FIELD",
        "MALFORMED",
    ]
    assert status(output) == ("sound", [])
    night(output, manifest_of(tmp_path / "2", "b", ["s", "t"], "speaker"), partition_by="speaker")
    assert read_everywhere(output, "speaker", "b0") == {"b1": "t"}


# -- columns that we read ourselves, without a value


WITHOUT_VALUES = [
    pa.array([math.nan, math.nan]),
    pa.nulls(2, pa.float64()),
    pa.nulls(2, pa.int32()),
    pa.nulls(2, pa.string()),
    pa.nulls(2),
    pa.nulls(2, pa.timestamp("us")),
    pa.array([math.nan, None], pa.float32()),
]


def test_a_known_column_without_a_value_is_absent_whatever_its_type(tmp_path):
    """Fails if a file is refused because pandas wrote a column without texts as numbers."""
    for column, empty in itertools.product(["text", "language", "id", "offset", "duration", "channel"], WITHOUT_VALUES):
        with case(column, empty):
            pq.write_table(
                pa.table({"audio": ["a.wav", "b.wav"], "text": ["x", "y"]} | {column: empty}), tmp_path / "m"
            )
            rows, rejects = read(tmp_path / "m", chunk_rows=1)
            assert not rejects and rows.num_rows == 2
            ours = {"id": "recording_id", "offset": "offset_s", "duration": "duration_s"}.get(column, column)
            assert column == "id" or rows[ours].null_count == 2


def test_a_text_column_of_numbers_is_still_refused(tmp_path):
    """Fails if numbers late in a column of NaN are taken for texts, or dropped."""
    pq.write_table(pa.table({"audio": ["a.wav"] * 3, "text": [math.nan, math.nan, 1.0]}), tmp_path / "m")
    with pytest.raises(ConfigError, match="column 'text' is double; a string is expected"):
        read(tmp_path / "m", chunk_rows=2)


DELIMITER_LINES = ["sep={}\r\n", "SEP={}\n", "\ufeffsep={}\r\n", '"sep={}"\n', "\nsep={}\n"]


def test_the_line_in_which_excel_says_the_delimiter(tmp_path):
    """Fails if `sep=;` is taken for the header, or the delimiter it names for part of a cell."""
    for delimiter, first in itertools.product([";", ",", "\t", "|"], DELIMITER_LINES):
        with case(delimiter, first):
            lines = [["id", "audio", "text", "note"], ["a", "a.wav", "x", "1,5;2"], ["b", "b.wav", "y", "z"]]
            cells = "\r\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
            rows, rejects = read(put(tmp_path / "m.csv", first.format(delimiter) + cells))
            assert not rejects
            assert rows.select(["recording_id", "text", "note"]).to_pylist() == [
                {"recording_id": "a", "text": "x", "note": "1,5;2"}, {"recording_id": "b", "text": "y", "note": "z"},
            ]  # fmt: skip
            assert rows["line"].to_pylist() == [3 + first.startswith("\n"), 4 + first.startswith("\n")]


def test_reading_rejects_of_rare_types(tmp_path, quick):
    """Fails if a rejected row's value of such a type breaks the log of rejects."""
    output = tmp_path / "out"
    path = manifest_of(tmp_path / "1", "a", pa.array([0.5, 0.25], pa.float16()))
    table = pq.ParquetFile(path).read()
    outside = pa.array(["/elsewhere/x.wav", "/a/1.wav"])
    pq.write_table(table.set_column(1, "audio", outside), path)
    night(output, path)
    assert rejected(output)["a0"]["x"] == 0.5
    assert audit(open_store(str(output)), deep=True).status == "sound"

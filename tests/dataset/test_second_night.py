"""A second run of another shape: no value of the manifest's own columns is changed, lost, or costs its neighbours a row."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.dataset.compatibility import settle_types
from pipeline.dataset.plan import load_plans
from pipeline.errors import ConfigError
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.storage.store import open_store
from tests.manifest.test_columns import _bare, json_values
from tests.support.manifests import jsonl, put
from tests.support.nights import driver_of, manifest_of, night, quick, read_everywhere, rejected, status, written

__all__ = ["quick"]

US = pa.timestamp("us")
TOKYO = pa.timestamp("us", tz="Asia/Tokyo")
NO = object()
"""Stands for a value that the first night's type cannot hold."""

NIGHTS = [
    # first night, second night, what the second night's rows hold
    ([1, 2], ["007", "12", 3], [NO, NO, 3]),
    ([1, 2], [30.5, 31.0, -0.5], [NO, 31, NO]),
    ([1, 2], [True, 0, None], [NO, 0, None]),
    ([1, 2], [2**63, 2**63 - 1], [NO, 2**63 - 1]),
    ([True, False], [5, 0, 0.5, True], [NO, NO, NO, True]),
    ([0.5, 1.5], ["1e3", 2, 2**53 + 1], [NO, 2.0, NO]),
    (["a", "b"], [7, 1.5, True, "007", None], ["7", "1.5", "true", "007", None]),
    ([[1]], [[2.5], [3], [], None, [True]], [NO, [3], [], None, NO]),
    ([{"a": 1}], [{"a": "x"}, {"a": 2}, {"b": 1}, "x", [1]], [NO, {"a": 2, "b": None}, {"a": None, "b": 1}, NO, NO]),
    (pa.array([1, 2], pa.int32()), [2**31, 7, 7.0], [NO, 7, 7]),
    (pa.array([1], pa.uint8()), pa.array([255, 256, -1], pa.int64()), [255, NO, NO]),
    (pa.array([0.5], pa.float32()), pa.array([0.1, 16777217.0, 0.25, math.inf]), [NO, NO, 0.25, math.inf]),
    (pa.array([0.5]), pa.array([0.1, 1.5], pa.float32()), [0.10000000149011612, 1.5]),
    (pa.array([0], US), pa.array([0], TOKYO), [NO]),
    (pa.array([0], TOKYO), pa.array([0], US), [NO]),
    (pa.array([0], pa.timestamp("us", tz="UTC")), pa.array([5], pa.timestamp("us", tz="Etc/UTC")),
     [datetime.datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=datetime.UTC)]),
    (pa.array([0], US), pa.array([1001, 2000], pa.timestamp("ns")), [NO, datetime.datetime(1970, 1, 1, 0, 0, 0, 2)]),
    (pa.array([0], US), pa.array([19_000], pa.date32()), [datetime.datetime(2022, 1, 8)]),
    (pa.array([0], US), [5, "2024-05-06 07:08:09"], [NO, NO]),
    (pa.array([5], pa.int64()), pa.array([1], US), [NO]),
    (pa.array([5], pa.date32()), pa.array([5, 6], pa.int32()), [NO, NO]),
    (pa.array([5], pa.duration("ms")), pa.array([5, 6000], pa.duration("us")), [NO, datetime.timedelta(milliseconds=6)]),
    (pa.array([Decimal("1.50")]), pa.array([Decimal("2.5"), Decimal("0.125"), Decimal("9999.5")]), [Decimal("2.50"), NO, NO]),
    (pa.array([Decimal("1.50")]), [0.5, 0.1, 7], [Decimal("0.50"), NO, Decimal("7.00")]),
    (pa.array([b"a"]), ["é", "x"], [NO, NO]),
    (["a"], pa.array([b"a"]), [NO]),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [[None, None], []], [NO, NO]),
    (pa.array([[1]], pa.list_(pa.int64(), 1)), [[None], []], [[None], NO]),
    ([{"l": [], "n": 1}], pa.array([{"l": [None, None], "n": 1.0}]), [{"l": [None, None], "n": 1}]),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
     pa.array([[("k", 2.5)], [("j", 2.0)]], pa.map_(pa.string(), pa.float64())), [NO, [("j", 2)]]),
    (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [[1, 2], [1], [0.1, 1]], [[1.0, 2.0], NO, NO]),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "expected"), NIGHTS, ids=[f"{n[0]}-{n[1]}"[:60] for n in NIGHTS])
def test_a_value_fits_the_first_nights_type_or_rejects_its_row(tmp_path, quick, first, second, expected):
    """Fails if 30.5 becomes 30, "007" becomes 7, a time zone or a key goes missing, or one odd value costs other rows."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", first))
    night(output, manifest_of(tmp_path / "2", "b", second))
    kept, refused = written(output), rejected(output)
    for row, value in enumerate(expected):
        if value is NO:
            assert f"b{row}" not in kept
            assert refused[f"b{row}"]["reason"] == "BAD_FIELD" and "column 'x' holds " in refused[f"b{row}"]["detail"]
            assert "x" in json.loads(refused[f"b{row}"]["raw"]) and refused[f"b{row}"]["x"] is None
        else:
            assert f"b{row}" not in refused
            assert (type(kept[f"b{row}"]), kept[f"b{row}"]) == (type(value), value)
    assert status(output) == ("sound", [])
    assert night(output, tmp_path / "2") == []


def test_a_reject_names_column_value_and_both_types(tmp_path, quick):
    """Fails if whoever reads the reject must guess what was wrong, or finds a token of a signed URL in it."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [1]))
    night(output, manifest_of(tmp_path / "2", "b", ["007", "https://h/a?sig=secret"]))
    detail = rejected(output)["b0"]["detail"]
    assert detail == """column 'x' holds "007" (string); its type in the output, int64, cannot hold that value"""
    assert rejected(output)["b0"]["raw"] == '{"x":"007"}'
    assert "secret" not in str(rejected(output)["b1"])


class _Plan:
    def __init__(self, extra: pa.Schema) -> None:
        self.extra = extra


def _settled(
    folder: Path, values: list[object], plans: list[_Plan]
) -> tuple[Staging, dict[str, object], dict[str, str]]:
    staging = Staging(folder)
    staging.read([str(manifest_of(folder / "m.jsonl", "r", values))], lambda rows: (rows, {}))
    staging.extra = settle_types(staging.inferred, plans)  # type: ignore[arg-type]
    selection = staging.select([], id_keys([]))
    kept = {row["recording_id"]: row["x"] for table in selection.tables() for row in table.to_pylist()}
    refused = {row["recording_id"]: row["raw"] for table in selection.rejects() for row in table.to_pylist()}
    return staging, kept, refused


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=4), st.lists(json_values, min_size=1, max_size=4))
@example([[]], [False, {}])
@example([{"a": 1}], [{"b": {}}, {"b": 1}, []])
@example([{"a": [1]}], [{"a": {}}, {"a": [{}]}, {}])
@example([[]], [{"A": None}, {"AA": None}])
@example([None], [{"A": None}, {"AA": None}])
def test_no_second_night_changes_a_value(tmp_path_factory, first, second):
    """Fails if some value, generated, is neither as it came in the plan nor whole in the reject of its row."""
    folder = tmp_path_factory.mktemp("nights")
    before, _, _ = _settled(folder / "1", first, [])
    try:
        _, kept, refused = _settled(folder / "2", second, [_Plan(before.extra)])
    except ConfigError:
        now = [value for value in second if value is not None]
        then = [value for value in first if value is not None]
        nested = [[isinstance(value, list | dict) for value in values] for values in (then, now)]
        assert all(all(kinds) or not any(kinds) for kinds in nested) and nested[0][0] != nested[1][0]
        return
    assert len(kept) + len(refused) == len(second)
    for row, value in enumerate(second):
        if f"r{row}" in refused:
            assert _equal(json.loads(refused[f"r{row}"]), {"x": value})
        else:
            assert _equal(kept[f"r{row}"], value)


def _equal(kept: object, value: object) -> bool:
    """Whether it is the value itself, or its JSON where the column is text. An absent key and a key with null are the same."""
    if isinstance(kept, str) and not isinstance(value, str):
        return _equal(json.loads(kept), value)
    if isinstance(kept, dict) and isinstance(value, dict):
        there = {key.lower(): item for key, item in kept.items() if item is not None}
        came = {key.lower(): item for key, item in value.items() if item is not None}
        return there.keys() == came.keys() and all(_equal(item, came[key]) for key, item in there.items())
    if isinstance(kept, list) and isinstance(value, list):
        return len(kept) == len(value) and all(map(_equal, kept, value))
    if isinstance(kept, bool) != isinstance(value, bool):
        return False
    return _bare(kept) == _bare(value)


def test_a_new_key_in_a_nested_column_costs_nothing(tmp_path, quick):
    """Fails if a key that the first night lacks costs the second its rows or the key its values, at any depth, or if
    whatever reads both nights drops the key or cannot read them.
    """
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [{"site": "A", "tags": [{"k": 1}], "none": None}]))
    second = [
        {"site": "B", "agent": "Ann", "tags": [{"k": 2, "w": 0.5}]},
        {"agent": "Bo", "deep": {"er": [{"x": 1}]}},
        {"SITE": "C"},
        {"site": "D", "tags": "odd"},
    ]
    night(output, manifest_of(tmp_path / "2", "b", second))
    night(output, manifest_of(tmp_path / "3", "c", [{"site": "E", "agent": "Cy"}, None]))
    assert rejected(output).keys() == {"b3"}
    empty = {"site": None, "tags": None, "none": None, "agent": None, "deep": None}
    assert read_everywhere(output, "x", "a0") == {
        "b0": {**empty, "site": "B", "agent": "Ann", "tags": [{"k": 2, "w": 0.5}]},
        "b1": {**empty, "agent": "Bo", "deep": {"er": [{"x": 1}]}},
        "b2": {**empty, "site": "C"},
        "c0": {**empty, "site": "E", "agent": "Cy"},
        "c1": None,
    }


def test_new_keys_survive_a_row_of_another_kind(tmp_path, quick):
    """Fails if one odd row of the night makes its column text, and the new keys of all others misfits."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [{"a": 1}]))
    values = [{"a": 2, "b": 1}, {"a": "odd"}, {"b": "x"}, 5, {"a": 3, "c": [{"d": 1}]}, {}]
    night(output, manifest_of(tmp_path / "2", "b", values))
    assert rejected(output).keys() == {"b1", "b3"}
    kept = {key: _bare(value) for key, value in written(output).items()}
    assert kept == {
        "a0": {"a": 1},
        "b0": {"a": 2, "b": "1"},
        "b2": {"b": "x"},
        "b4": {"a": 3, "c": [{"d": 1}]},
        "b5": {},
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1], [[1]]),
        ([1], [{"a": 1}]),
        ([{"a": 1}], [1]),
        ([["x"]], ["x", None]),
        (["x"], [{"a": 1}, None]),
        ([1], [{}]),
    ],
)
def test_a_column_that_turns_from_scalar_to_nested_is_refused(tmp_path, quick, first, second):
    """Fails if a night whose column cannot be the dataset's is annotated, or the refusal does not name the column."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", first))
    with pytest.raises(ConfigError, match=r"column 'x'.*cannot change between single values and lists"):
        night(output, manifest_of(tmp_path / "2", "b", second))
    assert [plan.plan for plan in load_plans(open_store(str(output)))] == ["000001"]


@pytest.mark.parametrize("second", [[{"a": 1}], [5, 1.5], ["x"], [[1], None]])
def test_a_column_that_was_empty_at_first_takes_anything(tmp_path, quick, second):
    """Fails if a first night without a value of a column decides what all later nights may hold."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [None]))
    night(output, manifest_of(tmp_path / "2", "b", second))
    assert not (output / "rejects").exists()
    for row, value in enumerate(second):
        kept = written(output)[f"b{row}"]
        assert kept == value if isinstance(value, str | None) else json.loads(kept) == value


@pytest.mark.parametrize(
    "empty", [pa.nulls(2), pa.nulls(2, pa.float64()), pa.array([math.nan, None]).fill_null(math.nan)]
)
def test_a_night_without_values_fits_whatever_its_type(tmp_path, quick, empty):
    """Fails if a column that pandas writes as numbers for want of values is refused beside one of objects."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [{"a": 1}]))
    if empty.null_count < len(empty):
        with pytest.raises(ConfigError, match="'x'"):  # NaN is a number
            night(output, manifest_of(tmp_path / "2", "b", empty))
        return
    night(output, manifest_of(tmp_path / "2", "b", empty))
    assert written(output) == {"a0": {"a": 1}, "b0": None, "b1": None}


def test_cells_of_csv_fit_the_numbers_they_write(tmp_path, quick):
    """Fails if a night in CSV, which has no types, loses its rows beside nights in JSON, or has `007` read as 7."""
    output = tmp_path / "out"
    night(output, jsonl(tmp_path / "1", {"id": "a", "audio": "/a/a.wav", "n": 1, "f": 0.5, "b": True, "t": "x"}))
    rows = ["1,1.50,True,007", "007,1,true,x", "7.0,1e3,false,", ",,,", "x,1,true,x", "1,0.1000000000000000055,true,x"]
    lines = [f"b{n},/a/{n}.wav,{row}" for n, row in enumerate(rows)]
    night(output, put(tmp_path / "2.csv", "\n".join(["id,audio,n,f,b,t", *lines])))
    assert rejected(output).keys() == {"b1", "b4", "b5"}
    kept = [[written(output, column)[f"b{n}"] for column in "nfbt"] for n in (0, 2, 3)]
    assert kept == [[1, 1.5, True, "007"], [7, 1000.0, False, ""], [None, None, None, ""]]


@pytest.mark.parametrize(("folder", "kept"), [("x=7", 7), ("x=007", NO), ("x=__HIVE_DEFAULT_PARTITION__", None)])
def test_columns_in_names_of_folders_fit_the_numbers_they_write(tmp_path, quick, folder, kept):
    """Fails if a night whose folders state a column loses its rows beside nights that have it in the file."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [1]))
    night(output, manifest_of(tmp_path / folder / "2", "b", [...]))
    assert (NO if "b0" in rejected(output) else written(output)["b0"]) == kept


def test_a_folder_agrees_with_a_column_of_several_kinds(tmp_path, quick):
    """Fails if a value that equals the one its folder states is a contradiction where others are numbers."""
    path = manifest_of(tmp_path / "x=7" / "1", "a", ["7", 7, "8"])
    night(tmp_path / "out", path)
    assert written(tmp_path / "out") == {"a0": "7", "a1": "7"}


def test_empty_cells_of_csv_fit_any_column(tmp_path, quick):
    """Fails if a column that CSV leaves empty is refused beside one of objects, or costs a row."""
    output = tmp_path / "out"
    night(output, jsonl(tmp_path / "1", {"id": "a", "audio": "/a/a.wav", "x": {"k": 1}, "y": [1], "z": "t"}))
    night(output, put(tmp_path / "2.csv", "id,audio,x,y,z\nb,/a/b.wav,,,\nc,/a/c.wav,,,u\n"))
    assert [written(output, column) for column in "xyz"] == [
        {"a": {"k": 1}, "b": None, "c": None}, {"a": [1], "b": None, "c": None}, {"a": "t", "b": "", "c": "u"},
    ]  # fmt: skip


def test_a_row_refused_for_another_reason_costs_no_other(tmp_path, quick):
    """Fails if the value of a row that is rejected anyway stops the night, or is not told."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", [1]))
    rows = [{"id": "b0", "audio": "/elsewhere/x.wav", "x": "odd"}, {"id": "b1", "audio": "/a/1.wav", "x": 2}]
    night(output, jsonl(tmp_path / "2", *rows))
    assert written(output) == {"a0": 1, "b1": 2}
    reject = rejected(output)["b0"]
    assert reject["reason"] == "NOT_ALLOWED" and '"odd"' in reject["detail"]


def test_an_id_whose_other_row_does_not_fit_is_settled_in_any_order(tmp_path, quick):
    """Fails if of two rows of one id the one that fits is annotated, as if the other had not been there."""
    for order in (1, -1):
        output = tmp_path / f"out{order}"
        night(output, manifest_of(tmp_path / "1", "a", [1]))
        rows = [{"id": "b", "audio": "/a/1.wav", "x": value} for value in ("odd", 2)][::order]
        night(output, jsonl(tmp_path / "2", *rows))
        found = [row["reason"] for row in pq.ParquetFile(output / "rejects/000002.parquet").read().to_pylist()]
        assert sorted(found) == ["BAD_FIELD", "DUPLICATE_ID"] and "b" not in written(output)


@pytest.mark.parametrize(("ours", "theirs"), [([3, 4, "x7"], [1]), ([3, 4, {"k": 1}], [1]), ([1.5, 3.0, 4.0], [1])])
def test_the_loser_of_a_race_for_a_plan_takes_the_winners_types(tmp_path, quick, ours, theirs):
    """Fails if two jobs at once on a new output give one column two types, or the loser its rows other values."""
    output = tmp_path / "out"
    loser = driver_of(output, manifest_of(tmp_path / "2", "b", ours))
    plan = loser._plan

    def after_the_winner(*arguments):
        night(output, manifest_of(tmp_path / "1", "a", theirs))
        return plan(*arguments)

    loser._plan = after_the_winner
    loser.run()
    plans = load_plans(open_store(str(output)))
    assert [found.extra.field("x").type for found in plans] == [pa.int64(), pa.int64()]
    odd = {f"b{row}" for row, value in enumerate(ours) if value not in (3, 4)}
    assert rejected(output).keys() == odd
    assert written(output) == {"a0": 1} | {f"b{n}": int(v) for n, v in enumerate(ours) if f"b{n}" not in odd}
    assert status(output) == ("sound", [])


@pytest.mark.parametrize("spelled", ["speaker", "SPEAKER", "sPeaker"])
@pytest.mark.parametrize("partition_by", ["", "Speaker"])
def test_names_that_differ_in_case_are_one_column(tmp_path, quick, spelled, partition_by):
    """Fails if a later night's `speaker` is a second column beside `Speaker`, which DuckDB and Spark cannot tell apart."""
    output = tmp_path / "out"
    options = {"partition_by": partition_by} if partition_by else {}
    night(output, manifest_of(tmp_path / "1", "a", ["ada", "eve"], "Speaker"), **options)
    night(output, manifest_of(tmp_path / "2", "b", ["bob", None], spelled), **options)
    assert [plan.extra.names for plan in load_plans(open_store(str(output)))] == [["Speaker"], ["Speaker"]]
    assert read_everywhere(output, "Speaker", "a0") == {"a1": "eve", "b0": "bob", "b1": None}


def test_a_partition_value_is_checked_however_its_column_is_spelled(tmp_path, quick):
    """Fails if a folder that readers take for null is made because the column is `SPEAKER` that night."""
    output = tmp_path / "out"
    night(output, manifest_of(tmp_path / "1", "a", ["ada"], "speaker"), partition_by="speaker")
    values = ["__HIVE_DEFAULT_PARTITION__", 5]  # of two kinds, so that the chunk holds documents
    night(output, manifest_of(tmp_path / "2", "b", values, "SPEAKER"), partition_by="speaker")
    assert rejected(output).keys() == {"b0"}
    assert (output / "utterances/speaker=5").is_dir()

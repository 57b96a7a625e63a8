"""Plans: which rows share a shard, what a plan remembers, and who owns a row when two plan at once."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset import packing
from pipeline.dataset.history import History
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.plan import (
    Plan,
    Shard,
    load_plans,
    plan_key,
    read_rejects,
    read_shard,
    tiny_shards_warning,
    write_plan,
)
from pipeline.errors import ConfigError
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Selection, Staging
from pipeline.storage.store import LocalStore, Store
from tests.support import selections
from tests.support.manifests import jsonl, put
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings, pins


def selection_of(ids: Sequence[str], folder: Path, **columns: Sequence[object]) -> Selection:
    folder.mkdir(exist_ok=True)
    return selections.selection_of(ids, folder, **columns)


BIG = ShardSize(rows=1_000, audio_s=1e9)


def planned(
    store: Store, selection: Selection, number: int = 1, *, size: ShardSize = BIG, partition_by=(), needs_text=True
) -> Plan | None:
    return write_plan(
        store, number, selection, settings=job_settings(partition_by=partition_by),
        models=pins(fusion_en="0" * 64), embedding_widths={"audio_embedding": 4},
        manifests=["m.jsonl"], size=size, needs_text=needs_text,
    )  # fmt: skip


def shards_of(store: Store, plan: Plan) -> list[list[dict[str, object]]]:
    return [read_shard(store, shard).to_pylist() for shard in plan.shards()]


def names(count: int) -> list[str]:
    return [f"r{number:03d}" for number in range(count)]


# -- shards


def test_rows_of_a_shard_share_partition_and_language(tmp_path):
    """Fails if a shard would need two folders or two models, or a row is lost or moved out of order on the way."""
    count = 200
    languages = ["en", "es", "en-GB", None]
    columns = {
        "language": [languages[n % 4] for n in range(count)],
        "day": [datetime.date(2024, 1, 1 + n % 3) for n in range(count)],
        "speaker": [None if n % 7 == 0 else f"s{n % 5}" for n in range(count)],
    }
    store = MemoryStore()
    plan = planned(store, selection_of(names(count), tmp_path, **columns), size=ShardSize(4, 1e9),
                   partition_by=("speaker", "day"))  # fmt: skip
    shards = shards_of(store, plan)
    for rows in shards:
        assert len({(row["speaker"], row["day"], row["language"]) for row in rows}) == 1
        assert [row["line"] for row in rows] == sorted(row["line"] for row in rows)
        assert len(rows) <= 4
    assert sorted(row["recording_id"] for rows in shards for row in rows) == names(count)
    groups = {tuple(values) for values in zip(columns["speaker"], columns["day"], columns["language"], strict=True)}
    fullest = sum(-(-sum(key == values for values in zip(*(columns[n] for n in ("speaker", "day", "language")),
                                                           strict=True)) // 4) for key in groups)  # fmt: skip
    assert len(shards) == plan.num_shards == fullest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    durations=st.lists(st.one_of(st.none(), st.floats(0.01, 100.0)), min_size=1, max_size=40),
    rows=st.integers(1, 6), audio_s=st.floats(1.0, 120.0),
)  # fmt: skip
def test_shard_bounds(tmp_path_factory, durations, rows, audio_s):
    """Fails if a shard is over a bound, a row over the bound is not alone, or a shard is closed with room for the next."""
    store = MemoryStore()
    ids = names(len(durations))
    selection = selection_of(ids, tmp_path_factory.mktemp("s"), duration_s=durations)
    plan = planned(store, selection, size=ShardSize(rows, audio_s))
    loads = [[15.0 if r["duration_s"] is None else r["duration_s"] for r in s] for s in shards_of(store, plan)]
    for load in loads:
        assert len(load) <= rows
        assert sum(load) <= audio_s * (1 + 1e-9) or len(load) == 1
    for load, after in itertools.pairwise(loads):
        assert len(load) == rows or sum(load) + after[0] > audio_s * (1 - 1e-9)
    assert [r["recording_id"] for s in shards_of(store, plan) for r in s] == ids


def test_a_row_longer_than_the_bound_is_alone(tmp_path):
    """Fails if an hour-long recording holds up short ones, or never fits and the planner does not end."""
    store = MemoryStore()
    selection = selection_of(names(6), tmp_path, duration_s=[1.0, 5000.0, 1.0, 1.0, 7000.0, 7000.0])
    shards = shards_of(store, planned(store, selection, size=ShardSize(10, 600.0)))
    assert [[row["duration_s"] for row in rows] for rows in shards] == [[1.0], [5000.0], [1.0, 1.0], [7000.0], [7000.0]]


def test_many_shards_in_several_files(tmp_path, monkeypatch):
    """Fails if shards are numbered or found wrongly where one plan file ends and the next begins."""
    monkeypatch.setattr(packing, "SHARDS_PER_FILE", 4)
    store = MemoryStore()
    for count, files in ((8, [4, 4]), (9, [4, 4, 1]), (3, [3])):
        store = MemoryStore()
        plan = planned(store, selection_of(names(count), tmp_path / str(count)), size=ShardSize(1, 1e9))
        assert [n for _, n in plan.files] == files
        assert [shard.number for shard in plan.shards()] == list(range(count))
        assert [rows[0]["recording_id"] for rows in shards_of(store, plan)] == names(count)
        assert [shard.name for shard in plan.shards()][:2] == ["000001-000000", "000001-000001"]
        assert b"".join(keys.tobytes() for keys in History(store).held([plan])[0]) == id_keys(names(count)).tobytes()


def test_shards_are_closed_early_when_there_are_too_many_partitions(tmp_path, monkeypatch):
    """Fails if the rows a planner holds in memory grow with the number of partitions."""
    monkeypatch.setattr(packing, "_OPEN_ROWS", 10)
    store = MemoryStore()
    closed = []
    monkeypatch.setattr(packing.Packer, "_close", lambda self, key, real=packing.Packer._close: (
        closed.append(sum(count for count, _ in self._fill.values())), real(self, key)))  # fmt: skip
    staging = Staging(tmp_path)
    for start in range(0, 60, 6):
        selection_part = [f"r{n:03d}" for n in range(start, start + 6)]
        table = pa.table({
            "recording_id": selection_part, "audio": selection_part, "text": selection_part, "language": ["en"] * 6,
            "offset_s": pa.nulls(6, pa.float64()), "duration_s": pa.nulls(6, pa.float64()),
            "channel": pa.nulls(6, pa.int32()), "manifest": ["m"] * 6, "line": list(range(6)),
            "speaker": [f"s{n % 15}" for n in range(start, start + 6)],
        })  # fmt: skip
        staging.add_rows(table)
    plan = planned(store, staging.select([], id_keys([])), partition_by=("speaker",))
    rows = shards_of(store, plan)
    assert sorted(row["recording_id"] for shard in rows for row in shard) == names(60)
    assert all(len({row["speaker"] for row in shard}) == 1 for shard in rows)
    assert max(closed) <= 10 + 6


# -- what a plan remembers


def test_a_plan_is_read_as_it_was_written(tmp_path):
    """Fails if a resumed run would see another plan than the one that was made."""
    store = LocalStore(tmp_path / "out")
    texts = ["a", None, "c"]
    selection = selection_of(names(3), tmp_path, text=texts, duration_s=[1.5, None, 2.0], take=[1, 2, 3])
    plan = planned(store, selection, size=ShardSize(2, 1e9), partition_by=("take",))
    (loaded,) = load_plans(store)
    assert loaded == plan
    assert loaded.config_hash == plan.config_hash and loaded.extra == plan.extra
    assert (plan.rows, plan.rows_without_text, plan.audio_s, plan.rejects) == (3, 1, 3.5, 0)
    assert plan.rejects_file is None and read_rejects(store, plan) is None
    assert all(isinstance(shard, Shard) for shard in loaded.shards())


def test_mode_audio_counts_no_missing_text(tmp_path):
    """Fails if a run that needs no text says how many texts are missing."""
    plan = planned(MemoryStore(), selection_of(names(2), tmp_path, text=[None, None]), needs_text=False)
    assert plan.rows_without_text == 0


def test_pass_through_types_survive(tmp_path):
    """Fails if a pass-through column changes its type or a value between manifest, plan file and `plan.extra`."""
    columns = {
        "when": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC), None], pa.timestamp("us", "UTC")),
        "day": pa.array([datetime.date(2024, 1, 2), None]),
        "price": pa.array([Decimal("1.20"), Decimal("3.45")], pa.decimal128(9, 2)),
        "octets": pa.array([b"\x00\xff", b""]),
        "tags": pa.array([["a", None], []], pa.list_(pa.string())),
        "meta": pa.array([{"k": 1, "l": [1.5]}, None]),
        "wide": pa.array([2**60, -1], pa.int64()),
        "unsigned": pa.array([2**64 - 1, 0], pa.uint64()),
        "small": pa.array([1, 2], pa.int8()),
        "single": pa.array([1.5, 2.5], pa.float32()),
        "flag": pa.array([True, None]),
    }  # fmt: skip
    store = LocalStore(tmp_path / "out")
    # through a real Parquet manifest
    pq.write_table(pa.table({"id": ["a", "b"], "audio": ["/x/a.wav", "/x/b.wav"], **columns}), tmp_path / "m.parquet")
    staging = Staging(tmp_path)
    staging.read([str(tmp_path / "m.parquet")], lambda rows: (rows, {}))
    plan = planned(store, staging.select([], id_keys([])))
    (loaded,) = load_plans(store)
    rows = read_shard(store, next(loaded.shards()))
    for name, array in columns.items():
        assert loaded.extra.field(name).type == array.type == rows.schema.field(name).type, name
        assert rows[name].combine_chunks().equals(array), name
    assert plan.extra.equals(loaded.extra)


def test_planning_rejects_are_kept(tmp_path):
    """Fails if what was refused while planning is lost before publish, or counted wrongly."""
    store = MemoryStore()
    staging = Staging(tmp_path)
    manifest = put(
        tmp_path / "m.jsonl", 'x\n{"id": "a", "audio": "1"}\n{"id": "b", "audio": "2"}\n{"id": "a", "audio": "3"}\n'
    )
    staging.read([str(manifest)], lambda rows: (rows, {}))
    plan = planned(store, staging.select([], id_keys([])))
    assert (plan.rows, plan.rejects) == (1, 3)
    rejects = read_rejects(store, plan)
    assert sorted(zip(rejects["line"].to_pylist(), rejects["reason"].to_pylist(), strict=True)) == [
        (1, "MALFORMED"), (2, "DUPLICATE_ID"), (4, "DUPLICATE_ID"),
    ]  # fmt: skip
    ids, refused = History(store).held([plan])
    assert not staging.select(ids, refused)


def test_a_plan_of_rejects_alone(tmp_path):
    """Fails if a manifest without one good row cannot be planned, so that its rejects are written nowhere."""
    store = MemoryStore()
    staging = Staging(tmp_path)
    staging.read([str(put(tmp_path / "m.jsonl", '{"audio": 5}\n'))], lambda rows: (rows, {}))
    plan = planned(store, staging.select([], id_keys([])))
    assert (plan.rows, plan.num_shards, plan.rejects) == (0, 0, 1)
    assert load_plans(store) == [plan] and not list(plan.shards())


# -- two planners


def test_the_second_planner_of_a_number_plans_nothing(tmp_path):
    """Fails if a plan can be replaced, or the loser's files are taken for the winner's."""
    store = LocalStore(tmp_path / "out")
    winner = planned(store, selection_of(["a", "b"], tmp_path / "1"))
    assert planned(store, selection_of(["a", "c"], tmp_path / "2")) is None
    (plan,) = load_plans(store)
    assert plan == winner and plan.token == winner.token
    assert [row["recording_id"] for rows in shards_of(store, plan) for row in rows] == ["a", "b"]


class _RacingStore(MemoryStore):
    """Lets another planner act just before a plan would exist."""

    def __init__(self) -> None:
        super().__init__()
        self.before_plan: list[object] = []

    def put_if_absent(self, key: str, content: bytes) -> bool:
        if key.endswith("plan.json") and self.before_plan:
            self.before_plan.pop()()
        return super().put_if_absent(key, content)


def _plan_until_done(store: Store, staging: Staging) -> list[Plan]:
    """The driver's loop: after losing a number, drop what the winner holds and try the next."""
    made = []
    while selection := staging.select(*(history := History(store)).held(history.plans)):
        plan = planned(store, selection, len(load_plans(store)) + 1)
        if plan is not None:
            made.append(plan)
    return made


@pytest.mark.parametrize("rivals", [1, 2, 3])
def test_no_id_has_two_owners_when_planners_race(tmp_path, rivals):
    """Fails if of planners at once, of overlapping manifests, two plan the same id, or one of their rows is in no plan."""
    store = _RacingStore()

    def staging_of(folder: str, ids: list[str]) -> Staging:
        (tmp_path / folder).mkdir()
        staging = Staging(tmp_path / folder)
        lines = [{"id": i, "audio": "a.wav"} for i in ids] + [{"id": "bad", "audio": 5}]
        staging.read([str(jsonl(tmp_path / "m.jsonl", *lines))], lambda rows: (rows, {}))
        return staging

    wanted = [["a", "b", "c"], ["b", "c", "d"], ["d", "e"], ["a", "e", "f"]][: rivals + 1]
    spools = [staging_of(str(n), ids) for n, ids in enumerate(wanted)]
    for staging in spools[1:]:
        store.before_plan.append(lambda staging=staging: _plan_until_done(store, staging))
    _plan_until_done(store, spools[0])
    plans = load_plans(store)
    owned = [row["recording_id"] for plan in plans for rows in shards_of(store, plan) for row in rows]
    assert sorted(owned) == sorted({i for ids in wanted for i in ids})
    assert not store.before_plan and not store.overwritten
    assert [plan.plan for plan in plans] == [f"{n:06d}" for n in range(1, len(plans) + 1)]


def test_a_lost_answer_is_no_lost_race(tmp_path):
    """Fails if a planner whose PUT timed out after taking effect plans the same rows again."""

    class Forgetful(MemoryStore):
        def put_if_absent(self, key: str, content: bytes) -> bool:
            super().put_if_absent(key, content)
            return False

    store = Forgetful()
    plan = planned(store, selection_of(["a"], tmp_path))
    assert plan is not None and load_plans(store) == [plan]


# -- refusals and warnings


def test_a_plan_of_a_newer_version_is_refused(tmp_path):
    """Fails if a plan is read by a version that does not understand it."""
    store = MemoryStore()
    planned(store, selection_of(["a"], tmp_path))
    content = json.loads(store.objects[plan_key("000001")])
    store.objects[plan_key("000001")] = json.dumps({**content, "format": 99, "novelty": 1}).encode()
    with pytest.raises(ConfigError, match="format 99; this version reads format 1"):
        load_plans(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b"\xff\xfe"])
def test_a_plan_that_cannot_be_read_is_refused_by_name(content):
    """Fails if a damaged plan.json ends in a traceback instead of a sentence that names it."""
    store = MemoryStore({plan_key("000001"): content})
    with pytest.raises(ConfigError, match=r"_runs/000001/plan\.json"):
        load_plans(store)


def test_tiny_shards_are_warned_of(tmp_path):
    """Fails if a partition column of many values gets no warning with the numbers, or a sane one gets any."""
    many = planned(MemoryStore(), selection_of(names(40), tmp_path / "1", take=list(range(40))), partition_by=("take",))
    assert "take gives 40 files of 1.0 rows" in tiny_shards_warning(many)
    few = planned(MemoryStore(), selection_of(names(40), tmp_path / "2", take=[n % 2 for n in range(40)]),
                  partition_by=("take",))  # fmt: skip
    assert tiny_shards_warning(few) is None
    alone = planned(MemoryStore(), selection_of(names(3), tmp_path / "3", take=[1] * 3), partition_by=("take",))
    assert tiny_shards_warning(alone) is None
    small = planned(MemoryStore(), selection_of(names(40), tmp_path / "4"), size=ShardSize(2, 1e9))
    assert tiny_shards_warning(small) is None


def test_partition_values_that_are_not_a_number(tmp_path):
    """Fails if NaN, which is not equal to itself, makes a shard of every row."""
    nan = float("nan")
    store = MemoryStore()
    selection = selection_of(names(6), tmp_path, level=np.array([nan, 1.0, nan, 1.0, nan, nan]))
    assert planned(store, selection, partition_by=("level",)).num_shards == 2


def test_the_plan_is_written_once(tmp_path):
    """Fails if planning leaves objects that a reader of the dataset could take for something else."""
    store = LocalStore(tmp_path / "out")
    plan = planned(store, selection_of(names(3), tmp_path / "s"))
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in Path(tmp_path / "out").rglob("*") if path.is_file()
    )
    assert found == ["_runs/000001/plan.json", f"_runs/000001/shards/{plan.token}-00000.parquet"]

"""Parts, receipts, folders of partition values, and what publish refuses."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import (
    Receipt,
    committed_parts,
    ids_sha256,
    new_attempt,
    part_bytes,
    partition_folder,
    read_receipt,
    read_receipts,
    write_part,
)
from pipeline.dataset.plan import Plan, read_shard, write_plan
from pipeline.dataset.publish import is_published, publish
from pipeline.errors import JobError, Reason, Reject, Stage
from pipeline.layout import part_key
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.storage.store import LocalStore, Store
from tests.support.cases import case
from tests.support.manifests import jsonl
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings, pins

SETTINGS = job_settings()


def receipt(number: int = 0, **changes: object) -> Receipt:
    made = Receipt(
        plan="000001", shard=number, attempt=new_attempt(), rows=1, utterances=1, ids_sha256="x", config_hash="c",
        models=pins(fusion_en="0" * 64), audio_s=1.5, stage_s={"prepare": 0.25},
        versions={"python": "3.11"},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def one_column(*ids: str) -> pa.Table:
    return pa.table({"recording_id": pa.array(ids, pa.string())})


def planned(store: Store, folder: Path, records: list[dict[str, object]], *, rows_per_shard: int = 2) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    staging = Staging(folder)
    staging.read([str(jsonl(folder / "m.jsonl", *records))], lambda rows: (rows, {}))
    plan = write_plan(
        store, 1, staging.select([], id_keys([])), settings=SETTINGS, models={}, embedding_widths={},
        manifests=["m"], size=ShardSize(rows_per_shard, 1e9), needs_text=True,
    )  # fmt: skip
    assert plan is not None
    return plan


def commit_all(store: Store, plan: Plan, rejects: dict[int, tuple[tuple[int, Reject], ...]] | None = None) -> None:
    for shard in plan.shards():
        rows = read_shard(store, shard)
        rejected = (rejects or {}).get(shard.number, ())
        kept = [n for n in range(rows.num_rows) if n not in {row for row, _ in rejected}]
        made = receipt(shard.number, rows=rows.num_rows, utterances=len(kept), ids_sha256=ids_sha256(rows),
                       config_hash=plan.config_hash, rejects=rejected)  # fmt: skip
        assert write_part(store, part_key(shard.name, ""), rows.take(pa.array(kept, pa.int64())), made)


def parts_of(store: Store, plan: Plan) -> dict[int, str]:
    return committed_parts(store, [plan])[plan.plan]


# -- parts


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_first_part_stands(tmp_path, on_disk):
    """Fails if a later attempt replaces a committed part, or does not learn that it lost."""
    store = LocalStore(tmp_path) if on_disk else MemoryStore()
    key = "utterances/000001-000000.parquet"
    first, second = receipt(), receipt()
    assert write_part(store, key, one_column("first"), first)
    assert not write_part(store, key, one_column("second"), second)
    assert read_receipt(store, key) == first
    assert pq.read_table(io.BytesIO(store.read(key)))["recording_id"].to_pylist() == ["first"]
    assert [entry.key for entry in store.list("utterances")] == [key]


def test_a_lost_answer_is_settled_by_the_attempt():
    """Fails if a PUT that took effect but was answered with a time-out counts as lost to somebody else."""

    class Forgetful(MemoryStore):
        def put_if_absent(self, key: str, content: bytes) -> bool:
            super().put_if_absent(key, content)
            return False

    store = Forgetful()
    assert write_part(store, "utterances/p.parquet", one_column("a"), receipt())
    assert not write_part(store, "utterances/p.parquet", one_column("b"), receipt())


@pytest.mark.parametrize("rejects", [0, 1, 20_000])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_receipt_is_read_as_it_was_written(tmp_path, on_disk, rejects):
    """Fails if a receipt loses a field, or one larger than the first 64 KiB read is not found."""
    store = LocalStore(tmp_path) if on_disk else MemoryStore()
    notes = tuple((n, Reject(Reason.NOT_FOUND, f"no object at /a/{n}/é🙂\n", Stage.FETCH, 2)) for n in range(rejects))
    written = receipt(rejects=notes, rows=rejects + 1)
    assert write_part(store, "utterances/p.parquet", one_column("a"), written)
    found = read_receipt(store, "utterances/p.parquet")
    assert found == written
    assert json.loads(json.dumps(found.document())) == json.loads(json.dumps(written.document()))
    size = len(store.read("utterances/p.parquet"))
    assert (size > 65536 * 10) == (rejects > 1)


def test_a_part_without_a_row_is_a_part(tmp_path):
    """Fails if a shard of which every row was rejected cannot be committed, read or listed."""
    store = LocalStore(tmp_path)
    assert write_part(store, "utterances/000001-000000.parquet", one_column("a").slice(0, 0), receipt(utterances=0))
    assert read_receipt(store, "utterances/000001-000000.parquet").utterances == 0
    assert ds.dataset(tmp_path / "utterances").to_table().num_rows == 0


def test_damaged_pages_are_noticed():
    """Fails if parts are written without page checksums."""
    content = bytearray(part_bytes(pa.table({"n": list(range(10_000))}), receipt()))
    content[200] ^= 0xFF
    with pytest.raises(OSError, match=r"CRC|checksum|[Cc]orrupt"):
        pq.read_table(io.BytesIO(bytes(content)), page_checksum_verification=True)


FOREIGN = {
    "no receipt": lambda: _parquet({}),
    "other metadata": lambda: _parquet({"pandas": "{}"}),
    "receipt is no JSON": lambda: _parquet({"speech_emotion.receipt": "}{"}),
    "receipt is not UTF-8": lambda: _parquet({"speech_emotion.receipt": b"\xff\xfe\x00"}),
    "receipt is a list": lambda: _parquet({"speech_emotion.receipt": "[]"}),
    "receipt is a text": lambda: _parquet({"speech_emotion.receipt": '"rejects"'}),
    "receipt breaks off in a letter": lambda: _parquet({"speech_emotion.receipt": b'{"plan": "\xc3"}'}),
    "receipt of another version": lambda: _parquet({"speech_emotion.receipt": '{"plan": "000001", "rejects": []}'}),
    "unknown fields": lambda: _parquet(
        {"speech_emotion.receipt": json.dumps({**receipt().document(), "novelty": 1})}
    ),
    "rejects are no notes": lambda: _parquet(
        {"speech_emotion.receipt": json.dumps({**receipt().document(), "rejects": ["x"]})}
    ),
    "empty": lambda: b"",
    "short": lambda: b"PAR1",
    "text": lambda: b"this is no Parquet at all, whatever the name says\n" * 3,
    "cut off": lambda: _parquet({})[:-20],
    "footer is garbage": lambda: _parquet({})[:-108] + b"\xff" * 100 + _parquet({})[-8:],
    "length beyond the file": lambda: b"x" * 50 + (2**31).to_bytes(4, "little") + b"PAR1",
}  # fmt: skip


def _parquet(metadata: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, one_column("a").schema) as writer:
        writer.write_table(one_column("a"))
        writer.add_key_value_metadata(metadata)
    return buffer.getvalue()


def test_a_foreign_file_is_named(tmp_path):
    """Fails if a file that another tool put beside the parts ends in a traceback, or is not named."""
    for on_disk, kind in itertools.product([True, False], FOREIGN):
        with case(on_disk, kind):
            store = LocalStore(tmp_path / kind) if on_disk else MemoryStore()
            store.put_if_absent("utterances/000001-000000.parquet", FOREIGN[kind]())
            with pytest.raises(JobError, match=r"utterances/000001-000000\.parquet"):
                read_receipt(store, "utterances/000001-000000.parquet")


def test_receipts_come_in_shard_order():
    """Fails if many footers, read by several threads, come in another order, or a broken one among them is passed over."""
    store = MemoryStore()
    keys = {}
    for number in reversed(range(40)):
        keys[number] = f"utterances/000001-{number:06d}.parquet"
        write_part(store, keys[number], one_column("a"), receipt(number))
    assert [found.shard for found in read_receipts(store, keys)] == list(range(40))
    store.objects[keys[17]] = b"broken"
    with pytest.raises(JobError, match="000001-000017"):
        list(read_receipts(store, keys))


def test_only_our_parts_are_counted(tmp_path):
    """Fails if temporaries, other plans or other tools' files are taken for shards that are done."""
    store = LocalStore(tmp_path)
    plan = planned(store, tmp_path / "s", [{"id": str(n), "audio": "a"} for n in range(6)])
    for name in (
        "000001-000000.parquet", "day=1/000001-000001.parquet", "000002-000002.parquet", "000001-x.parquet",
        "part-0.parquet", "_SUCCESS", "000001-000002.parquet.crc", "000001-000002.txt", "000001-²²²²²².parquet", "000001-000002",
    ):  # fmt: skip
        store.put_if_absent(f"utterances/{name}", b"")
    (tmp_path / "utterances" / ".000001-000002.parquet.abc.tmp").write_bytes(b"half")
    assert parts_of(store, plan) == {
        0: "utterances/000001-000000.parquet", 1: "utterances/day=1/000001-000001.parquet",
    }  # fmt: skip


# -- folders


VALUES = [
    "../../etc", "..", ".", "a/b", "a\\b", "a=b", "=", "%2F", "%", "🙂", "new\nline", "tab\t", "nul\0byte", " space ", "a+b",
    "ünïcode", "*?[]", "C:", "con", "~", "$HOME", "'\"", "#x?y&z", "e\u0301", "__hive", "null", "None", "1.0", "true",
]  # fmt: skip


def partition_tree(root: Path, column: str, values: list[object]) -> None:
    for number, value in enumerate(values):
        folder = root / "utterances" / partition_folder([column], [value])
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": [number]}), folder / f"{number}.parquet")


def read_tree(root: Path, column: str) -> list[object]:
    as_text = ds.partitioning(pa.schema([(column, pa.string())]), flavor="hive")
    table = ds.dataset(root / "utterances", partitioning=as_text).to_table().sort_by("n")
    return table[column].to_pylist()


def test_partition_values_come_back(tmp_path):
    """Fails if a reader of the folders sees another value than the manifest had."""
    partition_tree(tmp_path, "speaker", [*VALUES, None])
    assert read_tree(tmp_path, "speaker") == [*VALUES, None]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20).filter(lambda v: v and v != "__HIVE_DEFAULT_PARTITION__"), min_size=1, max_size=8))
@example([".", "..", "../x"])
def test_any_partition_value_comes_back(tmp_path_factory, values):
    """Fails if some text breaks out of its folder or is changed by it."""
    root = tmp_path_factory.mktemp("tree")
    values = [v for v in values if v.encode("utf-8", "ignore").decode() == v]
    partition_tree(root, "speaker", values or ["x"])
    assert read_tree(root, "speaker") == (values or ["x"])


def test_no_value_leaves_its_folder():
    """Fails if a manifest can write outside utterances/, or one level deeper or higher than its column, whatever its name."""
    for value in [*VALUES, "", None, "/abs", "a" * 300]:
        with case(value):
            for column in ("speaker", "a/b", "../up", "ä", "with space", "k=v"):
                folder = partition_folder([column, "x"], [value, value])
                pieces = folder.split("/")
                assert len(pieces) == 2 and all(piece.count("=") == 1 for piece in pieces), column
                assert ".." not in PurePosixPath(folder).parts and "\\" not in folder, column
                assert folder.isascii() and folder.isprintable(), column


def test_odd_column_names_come_back(tmp_path):
    """Fails if a partition column with a space, a slash or an accent is another column to a reader."""
    for number, column in enumerate(["with space", "a/b", "ä", "k=v", "100%"]):
        root = tmp_path / str(number)
        partition_tree(root, column, ["x"])
        assert read_tree(root, column) == ["x"]


# -- publish


RECORDS = [{"id": f"r{n}", "audio": f"/a/{n}.wav", "text": "t", "channel": 0, "take": n} for n in range(5)]
NOTE = (1, Reject(Reason.NOT_FOUND, "no object", Stage.FETCH))


def test_what_publish_derives(tmp_path):
    """Fails if counts, reasons or the rows of the rejects are not those of the receipts and the plan."""
    store = LocalStore(tmp_path)
    plan = planned(store, tmp_path / "s", [*RECORDS, {"id": "bad", "audio": 5}])
    commit_all(store, plan, {0: (NOTE,), 2: ((0, Reject(Reason.TOO_SHORT, "0.01 s", Stage.DECODE)),)})
    assert not is_published(store, plan)
    report = publish(store, plan, parts_of(store, plan), {"run_id": plan.plan})
    assert is_published(store, plan)
    assert (report["rows"], report["recordings_annotated"], report["rejected"], report["parts"]) == (6, 3, 3, 3)
    assert report["rejects_by_reason"] == {"BAD_FIELD": 1, "NOT_FOUND": 1, "TOO_SHORT": 1}
    assert report["stage_seconds"] == {"prepare": 0.75} and report["run_id"] == "000001"
    rejects = pq.read_table(io.BytesIO(store.read("rejects/000001.parquet")))
    assert rejects["recording_id"].to_pylist() == ["bad", "r1", "r4"]
    row = rejects.to_pylist()[1]
    expected = {"audio": "/a/1.wav", "text": "t", "channel": 0, "take": 1, "line": 2, "run_id": "000001", "attempts": 1,
                "reason": "NOT_FOUND", "detail": "no object", "stage": "fetch"}  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert set(pc.unique(rejects["run_id"]).to_pylist()) == {"000001"}
    assert rejects.schema.field("take").type == pa.int64()


def test_publish_again_changes_nothing(tmp_path):
    """Fails if a second publish, perhaps of a rival run, replaces or doubles what the first derived."""
    store = LocalStore(tmp_path)
    plan = planned(store, tmp_path / "s", RECORDS)
    commit_all(store, plan, {0: (NOTE,)})
    first = publish(store, plan, parts_of(store, plan), {"run_id": plan.plan, "who": 1})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = publish(store, plan, parts_of(store, plan), {"run_id": plan.plan, "who": 2})
    assert second == first and second["who"] == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_plan_without_rejects_has_no_rejects_file(tmp_path):
    """Fails if an empty rejects file is written."""
    store = LocalStore(tmp_path)
    plan = planned(store, tmp_path / "s", RECORDS)
    commit_all(store, plan)
    assert publish(store, plan, parts_of(store, plan), {})["rejected"] == 0
    assert not list(store.list("rejects"))


def _missing_part(store: MemoryStore, keys: list[str]) -> None:
    del store.objects[keys[1]]


def _fewer_rows(store: MemoryStore, keys: list[str]) -> None:
    found = read_receipt(store, keys[1])
    store.objects[keys[1]] = part_bytes(one_column("r2"), dataclasses.replace(found, rows=1, utterances=1))


def _other_config(store: MemoryStore, keys: list[str]) -> None:
    store.objects[keys[1]] = part_bytes(
        one_column("r2", "r3"), dataclasses.replace(read_receipt(store, keys[1]), config_hash="z")
    )


def _another_shards_part(store: MemoryStore, keys: list[str]) -> None:
    store.objects[keys[1]] = store.objects[keys[0]]


def _another_plans_part(store: MemoryStore, keys: list[str]) -> None:
    store.objects[keys[1]] = part_bytes(
        one_column("r2", "r3"), dataclasses.replace(read_receipt(store, keys[1]), plan="000009")
    )


def _foreign(store: MemoryStore, keys: list[str]) -> None:
    store.objects[keys[1]] = _parquet({})


SPOILT = [_missing_part, _fewer_rows, _other_config, _another_shards_part, _another_plans_part, _foreign]


@pytest.mark.parametrize("spoil", SPOILT)
def test_receipts_that_do_not_add_up_are_not_published(tmp_path, spoil):
    """Fails if a dataset in which a shard is missing, doubled or another's is called a success."""
    store = MemoryStore()
    plan = planned(store, tmp_path / "s", RECORDS)
    commit_all(store, plan)
    spoil(store, store.keys("utterances"))
    with pytest.raises(JobError):
        publish(store, plan, parts_of(store, plan), {})
    assert not is_published(store, plan)
    assert not store.keys("rejects") and not [key for key in store.objects if key.endswith("report.json")]


def test_the_ids_of_a_shard_are_told_apart():
    """Fails if other ids, another order, or ids that run into each other give the same fingerprint."""
    found = {ids_sha256(one_column(*ids)) for ids in (("a", "b"), ("b", "a"), ("ab",), ("a",), ("a", "b", "c"), ("",))}
    assert len(found) == 6

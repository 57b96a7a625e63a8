"""Work over many small files grows in step with their number: operations are counted, not seconds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.analytics import compact as compaction
from pipeline.analytics.publish import FORMATS, publish
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.publish import publish as publish_plan
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify import audit as auditing
from pipeline.storage.store import LocalStore, open_store
from tests.support import outputs
from tests.support.outputs import plan_rows


def nights(output: str, folder: Path, count: int) -> None:
    """An output with `count` published plans of one row each."""
    store = open_store(output)
    for night in range(count):
        plan = plan_rows(store, folder / str(night), [{"id": f"n{night}", "audio": "/a/1.wav", "speaker": "a"}])
        outputs.annotate(output, plan)
        outputs.publish_plan(store, plan)


def one_row_parts(output: str, folder: Path, count: int) -> None:
    """An output with one published plan of `count` shards of one row each."""
    store = open_store(output)
    records = [{"id": f"x{n}", "audio": f"/a/{n}.wav", "speaker": "a", "take": n} for n in range(count)]
    plan = plan_rows(store, folder, records, shard_rows=1)
    outputs.annotate(output, plan)
    outputs.publish_plan(store, plan)


class Sized:
    """A table that counts how often its size is asked for, which costs a visit to every buffer of every column."""

    asked = 0

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @property
    def nbytes(self) -> int:
        Sized.asked += 1
        return self.table.nbytes


@pytest.mark.parametrize("parts", [10, 40])
@pytest.mark.parametrize("group_parts", [3, 1000], ids=["small row groups", "one row group"])
def test_compaction_asks_for_the_size_of_each_part_once(tmp_path, monkeypatch, parts, group_parts):
    """Fails if the sizes of all waiting parts are added up again at each part (3,000 one-row parts took over five minutes), or
    a row group is written before it is full, or a row is lost between two of them."""
    output = str(tmp_path / "out")
    one_row_parts(output, tmp_path / "m", parts)
    read, write = compaction._read_part, compaction._write_group

    def write_tables(writer: pq.ParquetWriter, waiting: list[Sized]) -> None:
        write(writer, [each.table for each in waiting])
        waiting.clear()

    largest = max(read(open_store(output), key, schema).nbytes for key, schema in keys_and_schema(output))
    monkeypatch.setattr(compaction, "_ROW_GROUP_BYTES", group_parts * largest - largest // 2)
    monkeypatch.setattr(compaction, "_read_part", lambda *arguments: Sized(read(*arguments)))
    monkeypatch.setattr(compaction, "_write_group", write_tables)
    monkeypatch.setattr(Sized, "asked", 0)
    (made,) = compaction.compact(finished_rows(open_store(output)), target_bytes=10**9)
    assert Sized.asked == parts == made.rows
    (file,) = made.generation.files
    with pq.ParquetFile(Path(output, file.key)) as merged:
        groups = [merged.metadata.row_group(number).num_rows for number in range(merged.num_row_groups)]
        assert sorted(merged.read()["take"].to_pylist()) == list(range(parts))
    # sizes differ by a digit of a name, so that a group is full one part sooner or later
    assert sum(groups) == parts and all(abs(rows - group_parts) <= 1 for rows in groups[:-1])


def keys_and_schema(output: str) -> list[tuple[str, pa.Schema]]:
    rows = finished_rows(open_store(output))
    return [(key, compaction._schema(rows)) for key in rows.part_keys()]


class CountingStore(LocalStore):
    """Counts how often each file is opened."""

    def __init__(self, root: str) -> None:
        super().__init__(Path(root))
        self.opened: Counter[str] = Counter()

    def open(self, key: str) -> Any:
        self.opened[key] += 1
        return super().open(key)


@pytest.mark.parametrize("shards", [4, 12])
def test_publishing_opens_a_file_of_the_plan_once_however_many_shards_have_rejects(tmp_path, shards, monkeypatch):
    """Fails if the rejects of each shard cost another look at the footer that describes all shards of its file."""
    monkeypatch.setattr(outputs, "REJECTED", tuple(f"x{n}" for n in range(0, shards, 2)))
    output, store = str(tmp_path / "out"), open_store(str(tmp_path / "out"))
    records = [{"id": f"x{n}", "audio": f"/a/{n}.wav", "speaker": "a"} for n in range(shards)]
    plan = plan_rows(store, tmp_path / "m", records, shard_rows=1)
    outputs.annotate(output, plan)
    counting = CountingStore(output)
    report = publish_plan(counting, plan, committed_parts(store, [plan])[plan.plan], {})
    assert report["rejects_by_reason"] == {"NOT_FOUND": shards // 2} and report["rejected"] == shards // 2
    rejects = pq.read_table(tmp_path / "out/rejects/000001.parquet")["recording_id"].to_pylist()
    assert rejects == list(outputs.REJECTED)
    assert [counting.opened[file] for file, _ in plan.files] == [1]


@pytest.mark.parametrize("plans", [3, 9])
def test_the_audit_compares_each_plan_with_each_kind_once(tmp_path, monkeypatch, plans):
    """Fails if the models of every plan are compared with those of every plan before it."""
    output = str(tmp_path / "out")
    nights(output, tmp_path / "m", plans)
    compared = []

    def counting(earlier: Any, models: Any) -> None:
        there = list(earlier)
        compared.extend(there)
        compare(there, models)

    compare = auditing.compare_models
    monkeypatch.setattr(auditing, "compare_models", counting)
    assert auditing.audit(open_store(output)).status == "sound"
    assert len(compared) == plans - 1


@pytest.mark.parametrize("runs", [2, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_a_table_that_has_all_runs_is_read_once(tmp_path, monkeypatch, form, runs):
    """Fails if each run that a table has costs another look at the table: its log, or its column of runs."""
    output, table = str(tmp_path / "out"), str(tmp_path / form)
    nights(output, tmp_path / "m", runs)
    if form == "iceberg":
        table = "speech.utterances"
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", f"sqlite:///{tmp_path}/catalog.db")
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__WAREHOUSE", f"file://{tmp_path}")
        from pyiceberg import catalog
        from pyiceberg.utils.config import Config

        monkeypatch.setattr(catalog, "_ENV_CONFIG", Config())
    rows = finished_rows(open_store(output))
    assert len(list(publish(rows, form, table))) == runs
    looks = counted_looks(form, monkeypatch)
    assert list(publish(rows, form, table)) == []
    assert len(looks) == 1


def counted_looks(form: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time from now on that the library opens or scans a table."""
    looks: list[str] = []
    if form == "delta":
        import deltalake as library

        class Opened(library.DeltaTable):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                looks.append(form)
                super().__init__(*arguments, **options)

        monkeypatch.setattr(library, "DeltaTable", Opened)
        return looks
    if form == "lance":
        import lance as module

        place, name = module, "dataset"
    else:
        from pyiceberg.table import Table

        place, name = Table, "scan"
    real = getattr(place, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        looks.append(form)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, counting)
    return looks

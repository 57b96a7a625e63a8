from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.compact import main
from pipeline.analytics.compact import compact, load_generations
from pipeline.dataset.prune import find_leftovers
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.errors import JobError
from pipeline.storage.store import LocalStore, open_store
from tests.support.corpus import ROOT
from tests.support.outputs import SECOND, annotate, finished_output, plan_rows, publish_plan
from tests.support.processes import started

SMALL = 1
"""A target that no two parts fit into."""


def compacted(output, target_bytes=10**9):
    return list(compact(finished_rows(open_store(output)), target_bytes=target_bytes))


def rows_of(folder):
    if not any(Path(folder).rglob("*.parquet")):
        return []
    table = ds.dataset(folder, partitioning="hive", exclude_invalid_files=False).to_table().sort_by("utterance_id")
    return table.select(sorted(table.column_names)).to_pylist()


def ids_of(folder):
    return Counter(row["utterance_id"] for row in rows_of(folder))


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_the_copy_has_the_rows_in_fewer_files(place, tmp_path, request):
    """Fails if a value is lost or changed, a partition mixed, a file not merged, or the audit is no longer green."""
    output = str(tmp_path / "out")
    if place == "s3":
        server = request.getfixturevalue("s3")
        output = f"s3://{server.bucket}/compact"
    store = finished_output(output, tmp_path / "m")
    (made,) = compacted(output)
    assert (made.rows, made.parts, len(made.generation.files)) == (15, 8, 3)
    if place == "s3":
        server.filesystem().get(f"{server.bucket}/compact", str(tmp_path / "out"), recursive=True)
    assert rows_of(tmp_path / "out/compacted") == rows_of(tmp_path / "out/utterances") != []
    assert audit(store, deep=True).status == "sound"
    assert compacted(output) == []


def test_a_file_is_as_large_as_asked(tmp_path):
    """Fails if parts beyond the target go into one file, or order inside a partition is lost."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    (made,) = compacted(str(tmp_path / "out"), SMALL)
    assert len(made.generation.files) == made.parts == 8
    assert rows_of(tmp_path / "out/compacted") == rows_of(tmp_path / "out/utterances")


def test_each_run_is_taken_once_when_it_is_finished(tmp_path):
    """Fails if an unfinished run is taken, or a later compaction takes the earlier runs again."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    compacted(output)
    store = open_store(output)
    plan = plan_rows(store, tmp_path / "late", [{**row, "id": f"late{n}"} for n, row in enumerate(SECOND)])
    annotate(output, plan, shards=[0])
    assert compacted(output) == []
    annotate(output, plan, shards=[1])
    publish_plan(store, plan)
    (made,) = compacted(output)
    assert made.generation.plans == ("000003",) and ids_of(f"{output}/compacted") == ids_of(f"{output}/utterances")


def test_columns_that_came_later_are_null_before(tmp_path):
    """Fails if runs with other manifest columns cannot share a file, or a column is dropped."""
    output = str(tmp_path / "out")
    store = open_store(output)
    for number, record in enumerate([{"speaker": "a", "take": 1}, {"speaker": "a", "take": 2, "room": "r"}]):
        plan = plan_rows(
            store, tmp_path / str(number), [{"id": f"x{number}", "audio": f"/a/{number}.wav", "text": "t", **record}]
        )
        annotate(output, plan)
        publish_plan(store, plan)
    (made,) = compacted(output)
    assert len(made.generation.files) == 1
    assert [(row["take"], row["room"]) for row in rows_of(tmp_path / "out/compacted")] == [(1, None), (2, "r")]


def test_parts_with_other_types_are_taken_in(tmp_path):
    """Fails if one part whose texts another version wrote as a dictionary ends in a traceback, or loses a value."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    part = sorted(Path(output, "utterances").rglob("*.parquet"))[0]
    with pq.ParquetFile(part) as file:
        table, metadata = file.read(), file.metadata.metadata
    at = table.column_names.index("text")
    encoded = table.set_column(at, "text", table["text"].dictionary_encode())
    receipts = {key: value for key, value in metadata.items() if key != b"ARROW:schema"}
    pq.write_table(encoded.replace_schema_metadata(receipts), part)
    assert pq.read_schema(part).field("text").type != table.schema.field("text").type
    compacted(output)
    assert rows_of(tmp_path / "out/compacted") == rows_of(tmp_path / "out/utterances") != []


class Killed(BaseException):
    pass


class DyingStore(LocalStore):
    """Dies before or after its n-th write, or never; a look at the folders is taken after each."""

    def __init__(self, root, dies_at, *, before, look):
        super().__init__(Path(root))
        self.left, self.before, self.look = dies_at, before, look

    def put_if_absent(self, key, content):
        self.left -= 1
        if self.left == 0 and self.before:
            raise Killed
        created = super().put_if_absent(key, content)
        self.look()
        if self.left == 0:
            raise Killed
        return created


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_write_the_next_one_finishes(tmp_path, before):
    """Fails if a kill around any write loses or doubles a row for a reader of either folder, then or ever after."""
    writes = 1 + 8 + 1  # plan, files, _SUCCESS
    for dies_at in range(1, writes + 2):
        output = str(tmp_path / f"out{dies_at}")
        finished_output(output, tmp_path / f"m{dies_at}")
        whole = ids_of(f"{output}/utterances")

        def look(output=output, whole=whole):
            assert ids_of(f"{output}/utterances") == whole
            assert ids_of(f"{output}/compacted") <= whole

        store = DyingStore(output, dies_at, before=before, look=look)
        if dies_at <= writes:
            with pytest.raises(Killed):
                list(compact(finished_rows(store), target_bytes=SMALL))
        list(compact(finished_rows(DyingStore(output, 0, before=before, look=look)), target_bytes=SMALL))
        assert ids_of(f"{output}/compacted") == whole and max(whole.values()) == 1
        assert len(load_generations(store)) == 1 and compacted(output) == []


def test_two_at_once_make_the_same_files(tmp_path):
    """Fails if compactors that race for a generation each put the rows into files of their own."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    targets = itertools.cycle([SMALL, 10**9, 3000])
    threads = [threading.Thread(target=compacted, args=(output, next(targets))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids_of(f"{output}/compacted") == ids_of(f"{output}/utterances")
    assert len(load_generations(open_store(output))) == 1


def test_a_process_killed_hard_leaves_nothing_a_reader_sees(tmp_path):
    """Fails if SIGKILL in the middle of a write shows half a file: the hidden temporary is all that may stay."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    die = (
        "import os, signal, sys\nfrom jobs.compact import main\nreal, files = os.link, []\n"
        "def link(source, name):\n    files.append(name)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(files) == 3 else real(source, name)\n"
        "os.link = link\nsys.exit(main(sys.argv[1:]))"
    )
    with started([sys.executable, "-c", die, output], tmp_path / "log", {"PYTHONPATH": str(ROOT)}) as process:
        assert process.wait(60) == -9, (tmp_path / "log").read_text()
    assert sum(ids_of(f"{output}/compacted").values()) < 15
    (left,) = find_leftovers(open_store(output), now_s=time.time())
    assert left.key.startswith("compacted/") and left.kind == "temporary of a killed writer"
    assert main([output]) == 0 and ids_of(f"{output}/compacted") == ids_of(f"{output}/utterances")
    assert audit(open_store(output), deep=True).status == "sound"


def test_a_damaged_part_is_not_passed_on(tmp_path):
    """Fails if pages that fail their checksum, or a file with other rows than its receipt counts, become sound ones."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    part = sorted(Path(output, "utterances").rglob("*.parquet"))[0]
    content = bytearray(part.read_bytes())
    with pq.ParquetFile(part) as file:
        column = file.metadata.row_group(0).column(0)
        at = column.dictionary_page_offset + column.total_compressed_size - 1
    content[at] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(JobError, match=part.name):
        compacted(output)
    assert main([output]) == 1


def test_the_command(tmp_path, capsys):
    """Fails if the command does not say what it did, or takes a size that is none."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    assert main([str(tmp_path / "out")]) == 0
    assert "15 rows, 8 files merged into 3" in capsys.readouterr().out
    assert main([str(tmp_path / "out")]) == 0 and "nothing new" in capsys.readouterr().out
    assert main([str(tmp_path / "out"), "--target-mb", "0"]) == 2
    assert main([str(tmp_path / "none")]) == 2

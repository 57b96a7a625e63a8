"""Damage to the files of the output of `tests/support/outputs.py`, each with the codes that an audit must report.

Each docstring names the fault of a store, a person or this pipeline that has this effect.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.history import History
from pipeline.dataset.parts import Receipt, part_bytes, read_receipt
from pipeline.dataset.plan import load_plan
from pipeline.dataset.plan_index import ID, REJECTED
from pipeline.dataset.verify.invariants import Invariant
from pipeline.storage.store import LocalStore
from tests.support.many_nights import start
from tests.support.outputs import SECOND, plan_rows

Damage = Callable[[Path], object]
SHALLOW: dict[Damage, set[Invariant]] = {}
DEEP: dict[Damage, set[Invariant]] = {}
"""Damage that only reading every value shows; without `--deep` the audit finds nothing."""


def shows(*promises: Invariant, deep: bool = False) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        (DEEP if deep else SHALLOW)[damage] = set(promises)
        return damage

    return register


def part(out: Path, shard: int, plan: int = 1) -> Path:
    (found,) = out.glob(f"utterances/*/{plan:06d}-{shard:06d}.parquet")
    return found


def receipt_in(path: Path) -> Receipt:
    return read_receipt(LocalStore(path.parent), path.name)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table] = lambda rows: rows, **receipt: Any) -> None:
    """Write a part again as a whole file, with other rows or another receipt."""
    table = pq.read_table(io.BytesIO(path.read_bytes()))
    path.write_bytes(part_bytes(change(table), dataclasses.replace(receipt_in(path), **receipt)))


def column(name: str, change: Callable[[list[Any]], Sequence[Any]]) -> Callable[[pa.Table], pa.Table]:
    def changed(rows: pa.Table) -> pa.Table:
        field = rows.schema.field(name)
        values = pa.array(change(rows[name].to_pylist()), field.type)
        return rows.set_column(rows.schema.get_field_index(name), field, values)

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_receipt(rows: pa.Table, **metadata: str) -> bytes:
    """A Parquet file of the same rows, whose footer holds something else."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, rows.schema) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(metadata)
    return buffer.getvalue()


# -- parts as files


@shows(Invariant.PART_MISSING, Invariant.PUBLISHED_EARLY)
def a_part_is_deleted(out: Path) -> None:
    """A clean-up that took too much."""
    part(out, 0).unlink()


@shows(Invariant.PART_TWICE)
def a_part_is_there_twice(out: Path) -> None:
    """A commit whose folder depended on a model's answer."""
    source = part(out, 0)
    (out / "utterances/speaker=b" / source.name).write_bytes(source.read_bytes())


@shows(Invariant.PART_MISPLACED)
def a_part_is_in_another_folder(out: Path) -> None:
    """A copy between stores that mixed up folders."""
    source = part(out, 0)
    source.rename(out / "utterances/speaker=b" / source.name)


@shows(Invariant.PART_UNREADABLE)
def a_part_is_cut(out: Path) -> None:
    """A copy that ended early."""
    path = part(out, 0)
    path.write_bytes(path.read_bytes()[:-100])


@shows(Invariant.PART_UNREADABLE)
def a_part_is_empty(out: Path) -> None:
    """A file system that lost what was not synced."""
    part(out, 0).write_bytes(b"")


@shows(Invariant.PART_UNREADABLE)
def a_part_is_no_parquet(out: Path) -> None:
    """An error page saved under the part's name."""
    part(out, 0).write_bytes(b"<html>403 Forbidden</html>\n" * 50)


@shows(Invariant.RECEIPT_PLACE)
def two_parts_are_swapped(out: Path) -> None:
    """Names that do not belong to their contents."""
    one, other = part(out, 0), part(out, 1)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


@shows(Invariant.RECEIPT_MISSING)
def a_part_is_another_tools(out: Path) -> None:
    """A part rewritten by a tool that drops what it does not know."""
    path = part(out, 0)
    path.write_bytes(without_receipt(pq.read_table(io.BytesIO(path.read_bytes()))))


@shows(Invariant.RECEIPT_MISSING)
def a_receipt_is_garbage(out: Path) -> None:
    """A footer whose receipt is cut."""
    path = part(out, 0)
    rows = pq.read_table(io.BytesIO(path.read_bytes()))
    path.write_bytes(without_receipt(rows, **{"speech_emotion.receipt": '{"plan": '}))


@shows(Invariant.RECEIPT_MISSING)
def a_receipt_holds_other_types(out: Path) -> None:
    """A receipt of another version, whose fields mean something else."""
    rewrite(part(out, 0), rows="2")


@shows(Invariant.ORPHAN)
def a_strange_file_is_among_the_parts(out: Path) -> None:
    """A file somebody put there, which readers of the folder take for rows."""
    (out / "utterances/speaker=a/notes.txt").write_text("hello")


@shows(Invariant.ORPHAN)
def a_foreign_parquet_is_among_the_parts(out: Path) -> None:
    """The output of another job in the same folder."""
    pq.write_table(pa.table({"n": [1]}), out / "utterances/part-00000.parquet")


@shows(Invariant.ORPHAN)
def a_part_is_of_no_plan(out: Path) -> None:
    """A part copied here from another output."""
    (out / "utterances/speaker=a/000007-000000.parquet").write_bytes(part(out, 0).read_bytes())


@shows(Invariant.ORPHAN)
def rejects_are_of_no_plan(out: Path) -> None:
    """A rejects file copied here from another output."""
    (out / "rejects/000007.parquet").write_bytes((out / "rejects/000001.parquet").read_bytes())


@shows(Invariant.PART_BEYOND_PLAN)
def a_part_is_beyond_its_plan(out: Path) -> None:
    """A plan that was replaced by one with fewer shards."""
    (out / "utterances/speaker=a/000001-000006.parquet").write_bytes(part(out, 0).read_bytes())


# -- plans and the dataset


@shows(Invariant.DATASET_DAMAGED)
def the_dataset_is_not_there(out: Path) -> None:
    """A copy of an output without its hidden-looking files."""
    (out / "_dataset.json").unlink()


@shows(Invariant.DATASET_DAMAGED)
def the_dataset_is_garbage(out: Path) -> None:
    """A merge by hand."""
    (out / "_dataset.json").write_text('{"format": 1, "settings": [')


@shows(Invariant.DATASET_MIXED)
def the_dataset_has_other_settings(out: Path) -> None:
    """Settings edited after the rows were made."""
    document = json.loads((out / "_dataset.json").read_text())
    edit_json(out / "_dataset.json", settings={**document["settings"], "beam_size": 5})


@shows(Invariant.PLAN_DAMAGED)
def a_plan_is_garbage(out: Path) -> None:
    """A plan that was cut; its parts can be held against nothing."""
    (out / "_runs/000002/plan.json").write_text('{"plan": "000002", ')


@shows(Invariant.PLAN_DAMAGED)
def a_plan_names_files_outside_its_folder(out: Path) -> None:
    """A plan that would have the audit, or a job, read elsewhere."""
    edit_json(out / "_runs/000002/plan.json", files=[["_runs/000002/shards/../../../secret.parquet", 2]])


@shows(Invariant.PLAN_DAMAGED)
def a_plan_counts_wrong(out: Path) -> None:
    """A plan that was edited by hand."""
    edit_json(out / "_runs/000002/plan.json", rows=4)


@shows(Invariant.PLAN_DAMAGED)
def a_file_of_a_plan_is_gone(out: Path) -> None:
    """A clean-up that took too much."""
    (out / load_plan(LocalStore(out), "000002").files[0][0]).unlink()


@shows(Invariant.PLAN_DAMAGED)
def the_rejects_of_a_plan_are_cut(out: Path) -> None:
    """A plan whose own rejects cannot be read."""
    path = out / str(load_plan(LocalStore(out), "000001").rejects_file)
    path.write_bytes(path.read_bytes()[:-10])


@shows(Invariant.PLAN_GAP, Invariant.ORPHAN)
def a_plan_is_deleted(out: Path) -> None:
    """A number that is missing: resuming would plan the rows after it again."""
    (out / "_runs/000001/plan.json").unlink()


@shows(Invariant.ID_TWICE)
def two_plans_hold_the_same_rows(out: Path) -> None:
    """Two planners at once, of which neither read what the other had."""
    plan_rows(LocalStore(out), out.parent / "twice", SECOND[1:], held=False)


# -- what was published


@shows(Invariant.RETRY)
def a_plan_states_retries_that_it_has_not(out: Path) -> None:
    """A plan that says it takes over a row of another, and has none of its rows."""
    edit_json(out / "_runs/000002/plan.json", retries={"000001": 1})
    edit_json(out / "_runs/000002/report.json", retried={"000001": 1})


@shows(Invariant.PUBLISHED_EARLY, Invariant.PART_MISSING, Invariant.REPORT_MISSING, Invariant.REJECTS_MISSING)
def an_unfinished_plan_has_success(out: Path) -> None:
    """A success marker written by a script, not by the last step."""
    part(out, 0).unlink()
    (out / "_runs/000001/report.json").unlink()
    (out / "rejects/000001.parquet").unlink()


@shows(Invariant.REJECTS_MISSING)
def the_rejects_are_gone(out: Path) -> None:
    """Rows that are nowhere any more, for somebody who reads the output."""
    (out / "rejects/000001.parquet").unlink()


@shows(Invariant.REJECTS_ROWS)
def the_rejects_have_a_row_less(out: Path) -> None:
    """A publish that left out what was refused while planning."""
    path = out / "rejects/000001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


@shows(Invariant.REJECTS_ROWS)
def the_rejects_have_a_row_twice(out: Path) -> None:
    """A publish that counted a part twice."""
    path = out / "rejects/000001.parquet"
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows, rows.slice(2)]), path)


@shows(Invariant.REJECTS_UNREADABLE)
def the_rejects_are_cut(out: Path) -> None:
    """A copy that ended early."""
    path = out / "rejects/000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


@shows(Invariant.REPORT_COUNTS)
def the_report_counts_wrong(out: Path) -> None:
    """A report made from what workers said instead of from the receipts."""
    edit_json(out / "_runs/000001/report.json", utterances=11)


@shows(Invariant.REPORT_MISSING)
def the_report_is_gone(out: Path) -> None:
    """A publish that wrote the success marker first."""
    (out / "_runs/000001/report.json").unlink()


@shows(Invariant.REPORT_UNREADABLE)
def the_report_is_garbage(out: Path) -> None:
    """A report that was cut."""
    (out / "_runs/000001/report.json").write_text('{"rows": 1')


# -- the index of earlier plans


def indexed(out: Path, change: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> None:
    """Write the index as the next job would, then change its rows."""
    history = History(LocalStore(out))
    start(history)
    history.extend()
    (path,) = out.glob("_runs/index/*.parquet")
    with pq.ParquetFile(path) as file:
        rows, metadata = file.read(), file.metadata.metadata
    with pq.ParquetWriter(path, rows.schema) as writer:
        writer.write_table(change(rows))
        writer.add_key_value_metadata({key: metadata[key] for key in metadata if key.startswith(b"speech_emotion")})


def of_kind(kind: int, name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """Replace a value of the first row of a kind."""

    def changed(rows: pa.Table) -> pa.Table:
        at = rows["kind"].to_pylist().index(kind)
        return column(name, lambda values: [*values[:at], value, *values[at + 1 :]])(rows)

    return changed


@shows(Invariant.INDEX, deep=True)
def an_id_of_the_index_is_another(out: Path) -> None:
    """An index of an output that was restored from a backup: the next job annotates a row twice, and skips another."""
    indexed(out, of_kind(ID, "key", b"x" * 16))


@shows(Invariant.INDEX, deep=True)
def a_reject_of_the_index_has_another_reason(out: Path) -> None:
    """An index from before the rejects were replaced: `--retry-rejects` tries other rows again."""
    indexed(out, of_kind(REJECTED, "reason", "TIMEOUT"))


@shows(Invariant.INDEX, deep=True)
def a_plan_differs_from_the_index(out: Path) -> None:
    """A plan that somebody edited after it was indexed."""
    indexed(out)
    edit_json(out / "_runs/000001/plan.json", created_at="2020-01-01T00:00:00Z")

"""What a set of manifests selects: one row of equal ones, none of unequal ones, nothing an earlier plan holds."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Reason, Reject, Stage
from pipeline.manifest import hash_buckets, read
from pipeline.manifest.hash_buckets import id_keys, key_of
from pipeline.manifest.staging import Selection, Staging, reject_keys, reject_schema
from tests.support.cases import case
from tests.support.manifests import jsonl, put

NOTHING = id_keys([])


def accept(rows: pa.Table) -> tuple[pa.Table, dict[int, Reject]]:
    return rows, {}


def staged(folder: Path, *manifests: Path, check=accept) -> Staging:
    folder.mkdir(parents=True, exist_ok=True)
    staging = Staging(folder)
    staging.read([str(manifest) for manifest in manifests], check)
    return staging


def ids(tables) -> list[str]:
    return [i for table in tables for i in table["recording_id"].to_pylist()]


def refused(selection: Selection) -> list[dict[str, object]]:
    return [row for table in selection.rejects() for row in table.to_pylist()]


def select(staging: Staging, held: Sequence[str] = (), rejects=NOTHING) -> Selection:
    return staging.select([id_keys([name]) for name in held], rejects)


def expected(rows: Sequence[dict[str, object]]) -> tuple[list[str], Counter[str]]:
    """The rule, said plainly: ids that come with one content, and how often the others are rejected."""
    contents: dict[str, set[str]] = {}
    for row in rows:
        contents.setdefault(str(row["id"]), set()).add(json.dumps(row, sort_keys=True))
    clashing = Counter(str(row["id"]) for row in rows if len(contents[str(row["id"])]) > 1)
    return sorted(i for i, found in contents.items() if len(found) == 1), clashing


# -- duplicates


def test_duplicates_in_any_order_over_files_and_chunks(tmp_path, monkeypatch):
    """Fails if what becomes of a repeated id depends on the order, the file or the chunk its rows stand in."""
    monkeypatch.setattr(read, "CHUNK_ROWS", 3)
    monkeypatch.setattr(read.read_manifest, "__kwdefaults__", {"chunk_rows": 3, "audio_optional": False})
    for seed in range(50):
        with case(seed):
            folder = tmp_path / str(seed)
            folder.mkdir()
            chance = random.Random(seed)
            rows = [{"id": f"one-{n}", "audio": "a.wav", "text": "t"} for n in range(4)]
            rows += [{"id": f"twice-{n}", "audio": "a.wav", "take": 1} for n in range(3)] * 2
            rows += [{"id": f"clash-{n}", "audio": "a.wav", "text": text} for n in range(3) for text in ("x", "y", "x")]
            rows += [{"id": "extra", "audio": "a.wav", "speaker": speaker} for speaker in ("s1", "s2")]
            chance.shuffle(rows)
            cut = chance.randrange(len(rows))
            files = [jsonl(folder / "a.jsonl", *rows[:cut]), jsonl(folder / "b.jsonl", *rows[cut:])]
            staging = staged(folder / "staging", *files)
            assert len(staging.chunks) > 5
            selection = select(staging)
            kept, clashing = expected(rows)
            assert sorted(ids(selection.tables())) == kept
            assert selection.rows == len(kept)
            rejects = refused(selection)
            assert Counter(row["recording_id"] for row in rejects) == clashing
            assert {row["reason"] for row in rejects} == {"DUPLICATE_ID"}
            for row in rejects:
                where = rows[:cut] if row["manifest"].endswith("a.jsonl") else rows[cut:]
                assert where[row["line"] - 1]["id"] == row["recording_id"]
                assert where[row["line"] - 1].get("text") == row["text"]


def test_the_first_of_equal_rows_is_kept(tmp_path):
    """Fails if another than the first is kept: lines in later logs would point elsewhere."""
    row = {"id": "a", "audio": "a.wav"}
    first, second = (
        jsonl(tmp_path / "1.jsonl", {"id": "b", "audio": "b.wav"}, row, row),
        jsonl(tmp_path / "2.jsonl", row),
    )
    (table,) = select(staged(tmp_path / "s", first, second)).tables()
    assert [(r["recording_id"], r["line"], Path(r["manifest"]).name) for r in table.to_pylist()] == [
        ("b", 1, "1.jsonl"), ("a", 2, "1.jsonl"),
    ]  # fmt: skip


def test_columns_in_another_order_and_absent_or_null_are_the_same_content(tmp_path):
    """Fails if `{"a":1,"b":null}` and `{"b":null,"a":1}` and `{"a":1}` count as different contents of one id."""
    manifest = put(tmp_path / "m.jsonl", "\n".join([
        '{"id": "a", "audio": "a.wav", "take": 1, "speaker": null}',
        '{"take": 1, "audio": "a.wav", "id": "a"}',
        '{"id": "a", "path": "a.wav", "take": 1}',
    ]))  # fmt: skip
    selection = select(staged(tmp_path / "s", manifest))
    assert ids(selection.tables()) == ["a"] and not refused(selection)


def test_clashing_ids_whose_keys_end_in_a_zero_byte(tmp_path):
    """Fails if numpy's fixed-width strings, which drop trailing zero bytes, misalign the keys of clashing ids."""
    unlucky = [f"id-{n}" for n in range(20_000) if key_of(f"id-{n}").endswith(b"\0")]
    assert len(unlucky) > 16
    for count in (1, 2, 16, len(unlucky)):
        rows = [{"id": i, "audio": "a.wav", "text": text} for i in unlucky[:count] for text in ("x", "y")]
        selection = select(
            staged(tmp_path / f"s{count}", jsonl(tmp_path / "m.jsonl", *rows, {"id": "z", "audio": "a"}))
        )
        assert ids(selection.tables()) == ["z"]
        assert len(refused(selection)) == 2 * count


def test_ids_are_told_apart_to_the_last_byte(tmp_path):
    """Fails if ids are normalised, stripped or folded before they are compared."""
    names = ["007", "7", "a", "A", "é", "e\u0301", "a/b", "a%2Fb", "🙂", "a b"]
    manifest = jsonl(tmp_path / "m.jsonl", *({"id": name, "audio": "a.wav"} for name in names))
    assert ids(select(staged(tmp_path / "s", manifest)).tables()) == names


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["x", "y", "z", "v\0", "\0"]), max_size=6), st.lists(st.text(max_size=3), max_size=30))
def test_keys_mean_equality(held, names):
    """Fails if a key of an id is not found again, or is found for another id."""
    found = np.isin(id_keys(names), id_keys(held)) if held else np.zeros(len(names), bool)
    assert found.tolist() == [name in held for name in names]


# -- ids


def test_missing_ids_are_derived(tmp_path):
    """Fails if rows without an id are one row, or if the same row in another file, or read again, has another id."""
    rows = [
        {"audio": "a.wav"},
        {"audio": "a.wav", "offset": 1.0, "duration": 2.0},
        {"audio": "a.wav", "offset": 2.0, "duration": 2.0},
        {"audio": "a.wav", "channel": 1},
        {"audio": "b.wav"},
    ]
    one, two = jsonl(tmp_path / "1.jsonl", *rows), jsonl(tmp_path / "2.jsonl", *reversed(rows))
    found = ids(select(staged(tmp_path / "s", one, two)).tables())
    assert len(found) == len(set(found)) == len(rows) and all(found)
    assert found == ids(select(staged(tmp_path / "again", one)).tables())


# -- what earlier plans hold


def test_held_ids_are_skipped(tmp_path):
    """Fails if a row of an earlier plan is planned again, or its repeats are rejected now."""
    rows = [{"id": name, "audio": "a.wav", "text": text} for name in "abc" for text in ("x", "y")]
    staging = staged(tmp_path / "s", jsonl(tmp_path / "m.jsonl", *rows, {"id": "new", "audio": "a.wav"}))
    selection = select(staging, held=["a", "c", "not here"])
    assert ids(selection.tables()) == ["new"]
    assert {row["recording_id"] for row in refused(selection)} == {"b"}
    assert selection.held == 4


def test_selecting_again_with_more_held_starts_afresh(tmp_path):
    """Fails if a selection changes the staging, so that a planner who lost a race selects something else."""
    rows = [{"id": name, "audio": "a.wav", "text": text} for name in "ab" for text in ("x", "x")]
    staging = staged(tmp_path / "s", jsonl(tmp_path / "m.jsonl", *rows, *[{"id": "c", "audio": a} for a in "xy"]))
    for _ in range(2):
        assert ids(select(staging).tables()) == ["a", "b"]
        assert ids(select(staging, held=["a"]).tables()) == ["b"]
        assert not list(select(staging, held=["a", "b"]).tables())


def test_rejects_of_a_rerun_are_not_logged_again(tmp_path):
    """Fails if the second run of a command logs its bad lines a second time, or a new bad line is not logged."""

    def no_beds(rows):
        bad = [n for n, audio in enumerate(rows["audio"].to_pylist()) if audio.endswith("bed.wav")]
        return rows, {n: Reject(Reason.NOT_ALLOWED, "a bed", Stage.MANIFEST) for n in bad}

    lines = [
        '{"id": "ok", "audio": "a.wav"}', "not json", '{"id": "bed", "audio": "bed.wav"}', '{"id": "none"}',
        '{"id": "c", "audio": "x.wav"}', '{"id": "c", "audio": "y.wav"}',
    ]  # fmt: skip
    manifest = put(tmp_path / "m.jsonl", "\n".join(lines) + "\n")
    selection = select(staged(tmp_path / "1", manifest, check=no_beds))
    first = list(selection.rejects())
    assert sorted(row["line"] for table in first for row in table.to_pylist()) == [2, 3, 4, 5, 6]
    logged = np.concatenate([reject_keys(table) for table in first])
    again = staged(tmp_path / "2", manifest, check=no_beds)
    assert not again.select([id_keys(["ok"])], logged)
    put(manifest, "\n".join([*lines, "worse"]) + "\n")
    grown = staged(tmp_path / "3", manifest, check=no_beds).select([id_keys(["ok"])], logged)
    assert grown and [row["line"] for row in refused(grown)] == [7]


def test_rejects_carry_their_row(tmp_path):
    """Fails if a reject loses what its row said: it could not be repaired and sent again."""

    def all_bad(rows):
        causes = {n: Reject(Reason.NOT_ALLOWED, "no", Stage.MANIFEST) for n in range(rows.num_rows)}
        return rows, causes

    row = {"id": "a", "audio": "/x/a.wav", "text": "t", "language": "en", "offset": 1, "duration": 2, "channel": 1}
    manifest = jsonl(tmp_path / "m.jsonl", {**row, "speaker": "s", "take": 3, "tags": ["p", "q"]})
    (reject,) = refused(select(staged(tmp_path / "s", manifest, check=all_bad)))
    assert {name: reject[name] for name in ("recording_id", "audio", "text", "language", "offset_s", "duration_s")} == {
        "recording_id": "a", "audio": "/x/a.wav", "text": "t", "language": "en", "offset_s": 1.0, "duration_s": 2.0,
    }  # fmt: skip
    assert (reject["channel"], reject["speaker"], reject["take"], reject["tags"]) == (1, "s", 3, ["p", "q"])
    assert (reject["reason"], reject["stage"], reject["attempts"], reject["line"]) == ("NOT_ALLOWED", "manifest", 1, 1)


# -- types


def test_types_are_one_over_all_chunks_and_files(tmp_path, monkeypatch):
    """Fails if a column that is a number in one chunk and a text in the next breaks the plan or loses a value."""
    monkeypatch.setattr(read.read_manifest, "__kwdefaults__", {"chunk_rows": 2, "audio_optional": False})
    values = [1, 2, 3.5, None, "four", "5", True, [6]]
    rows = [{"id": str(n), "audio": "a.wav", "v": v, "late": n} for n, v in enumerate(values)]
    del rows[0]["late"], rows[1]["late"]
    staging = staged(tmp_path / "s", jsonl(tmp_path / "1", *rows[:5]), jsonl(tmp_path / "2", *rows[5:]), tmp_path / "1")
    assert len(staging.chunks) > 4
    tables = list(select(staging).tables())
    assert len({table.schema for table in tables}) == 1
    table = pa.concat_tables(tables)
    assert table["v"].to_pylist() == ["1", "2", "3.5", None, "four", "5", "true", "[6]"]
    assert table["late"].to_pylist() == [None, None, 2, 3, 4, 5, 6, 7] and table["late"].type == pa.int64()


def test_duplicates_are_compared_in_the_united_types(tmp_path, monkeypatch):
    """Fails if 1 in a chunk of whole numbers and 1.0 in a chunk of fractions are two contents of one id."""
    monkeypatch.setattr(read.read_manifest, "__kwdefaults__", {"chunk_rows": 1, "audio_optional": False})
    rows = [{"id": "a", "audio": "a.wav", "v": v} for v in (1, 1.0)] + [{"id": "b", "audio": "a.wav", "v": 0.5}]
    selection = select(staged(tmp_path / "s", jsonl(tmp_path / "m", *rows)))
    assert ids(selection.tables()) == ["a", "b"] and not refused(selection)


# -- edges


def test_nothing_at_all(tmp_path):
    """Fails if an empty manifest, or one of bad lines only, breaks the selection."""
    empty = select(staged(tmp_path / "1", put(tmp_path / "m.jsonl", "")))
    assert not empty and empty.rows == 0 and not list(empty.tables()) and not refused(empty)
    bad = select(
        staged(tmp_path / "2", put(tmp_path / "b.jsonl", '{"id": "x", "audio": 5}\n{"id": "y", "audio": ""}\n'))
    )
    assert bad and bad.rows == 0 and len(refused(bad)) == 2


def test_rejects_have_one_schema(tmp_path):
    """Fails if rejects of lines and rejects of rows cannot be written to one file."""
    manifest = put(tmp_path / "m.jsonl", 'x\n{"id": "a", "audio": "1"}\n{"id": "a", "audio": "2", "take": 1}\n')
    staging = staged(tmp_path / "s", manifest)
    tables = list(select(staging).rejects())
    assert {table.schema for table in tables} == {reject_schema(staging.extra)}
    assert pa.concat_tables(tables).num_rows == 3


def test_a_chunk_of_which_every_row_is_refused(tmp_path):
    """Fails if the columns of rows that are all refused are unknown when their rejects are written."""

    def only_ours(rows):
        bad = [n for n, i in enumerate(rows["recording_id"].to_pylist()) if i.startswith("bad")]
        return rows, {n: Reject(Reason.UNSUPPORTED_LANGUAGE, "no", Stage.MANIFEST) for n in bad}

    good = jsonl(tmp_path / "good.jsonl", {"id": "ok", "audio": "a.wav", "take": 1})
    bad = jsonl(tmp_path / "bad.jsonl", {"id": "bad", "audio": "a.wav", "take": "one", "speaker": "s"})
    selection = select(staged(tmp_path / "s", good, bad, check=only_ours))
    (reject,) = refused(selection)
    assert (reject["take"], reject["speaker"]) == ("one", "s")
    assert [table["take"].to_pylist() for table in selection.tables()] == [["1"]]


@pytest.mark.parametrize("name", ["raw", "reason", "detail", "stage", "attempts", "line", "row", "run_id", "emotion"])
def test_a_manifest_column_of_any_name_passes(tmp_path, name):
    """Fails if a manifest column that is called like one of ours breaks the plan, or either of the two is lost."""
    rows = [{"id": "ok", "audio": "a.wav", name: "mine"}, *[{"id": "c", "audio": a, name: "mine"} for a in "xy"]]
    rows.append({"id": "bad", "audio": 5, name: "mine"})
    staging = staged(tmp_path / "s", jsonl(tmp_path / "m.jsonl", *rows))
    selection = select(staging)
    (passed,) = staging.extra.names
    (table,) = selection.tables()
    assert table[passed].to_pylist() == ["mine"]
    rejects = refused(selection)
    assert [(r["recording_id"], r["reason"]) for r in rejects] == [("bad", "BAD_FIELD"), *[("c", "DUPLICATE_ID")] * 2]
    assert [r[passed] for r in rejects[1:]] == ["mine", "mine"] and '"bad"' in rejects[0]["raw"]


def test_memory_grows_by_bytes_a_row(tmp_path, monkeypatch):
    """Fails if the staging keeps rows, or a key of each: what stays in memory must not grow with what they hold."""
    monkeypatch.setattr(hash_buckets, "_AT_ONCE", 1_000)
    staging = Staging(tmp_path)
    count, rounds = 2_000, 5
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for start in range(0, count * rounds, count):
        names = [f"row-{n}" for n in range(start, start + count)]
        table = pa.table({
            "recording_id": names, "audio": names, "text": ["x" * 2_000] * count, "language": ["en"] * count,
            "offset_s": pa.nulls(count, pa.float64()), "duration_s": pa.nulls(count, pa.float64()),
            "channel": pa.nulls(count, pa.int32()), "manifest": ["m"] * count, "line": list(range(count)),
        })  # fmt: skip
        staging.add_rows(table)
        del table, names
    assert pa.total_allocated_bytes() - before < 2_000 * count
    selection = select(staging)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 * count * rounds, "a key alone has 16 bytes"
    assert selection.rows == count * rounds
    assert sum(pc.count(table["recording_id"]).as_py() for table in selection.tables()) == count * rounds


@pytest.mark.parametrize("refused_first", [True, False])
def test_an_id_is_not_both_a_refused_row_and_a_new_one(tmp_path, refused_first):
    """Fails if one id ends as an utterance and as a reject, or which of them depends on the order."""
    good, refused = {"id": "x", "audio": "good.wav"}, {"id": "x", "audio": "refused.wav"}
    manifest = tmp_path / "m.jsonl"
    lines = [refused, good] if refused_first else [good, refused]
    manifest.write_text("\n".join(json.dumps(line) for line in [*lines, {"id": "y", "audio": "other.wav"}]))

    def check(rows):
        cause = Reject(Reason.NOT_ALLOWED, "no", Stage.MANIFEST)
        return rows, {i: cause for i, audio in enumerate(rows["audio"].to_pylist()) if audio.endswith("refused.wav")}

    staging = Staging(tmp_path / "staging")
    staging.read([str(manifest)], check)
    selection = select(staging)
    assert [i for t in selection.tables() for i in t["recording_id"].to_pylist()] == ["y"]
    assert sorted(r for t in selection.rejects() for r in t["reason"].to_pylist()) == ["DUPLICATE_ID", "NOT_ALLOWED"]

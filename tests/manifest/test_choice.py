"""`--limit` and `--sample`: which lines are planned, whatever the manifests hold, and that nothing is lost or doubled."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.plan import load_plans, read_rejects, read_shards
from pipeline.manifest.choice import Choice
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.rejects import reject_keys
from pipeline.manifest.staging import Selection, Staging
from pipeline.storage.store import open_store
from tests.support.manifests import jsonl
from tests.support.noop_driver import Killed, without_ray

NOTHING = id_keys([])


def selected(folder: Path, manifests: list[Path], choice: Choice | None, held=(), rejects=NOTHING) -> Selection:
    staging = Staging(folder, choice=choice)
    staging.read([str(manifest) for manifest in manifests], lambda rows: (rows, {}))
    return staging.select([id_keys([name]) for name in held], rejects)


def planned(selection: Selection) -> list[str]:
    return [name for table in selection.tables() for name in table["recording_id"].to_pylist()]


def refused(selection: Selection) -> list[tuple[str, int]]:
    return [
        (Path(row["manifest"]).name, row["line"]) for table in selection.rejects() for row in table.to_pylist()
    ]  # fmt: skip


def messy(folder: Path, seed: int) -> list[Path]:
    """Three manifests with equal rows, rows of one id that differ, and lines that cannot be read, in any order."""
    chance = random.Random(seed)
    rows: list[object] = [{"id": f"one-{n}", "audio": f"{n}.wav", "take": n} for n in range(12)]
    rows += [{"id": f"twice-{n}", "audio": "a.wav"} for n in range(4)] * 2
    rows += [{"id": f"clash-{n}", "audio": f"{take}.wav"} for n in range(3) for take in (1, 2)]
    rows += ["not json", '{"id": "bad", "audio": 5}', "{"]
    chance.shuffle(rows)
    cuts = sorted(chance.sample(range(len(rows) + 1), 2))
    parts = [rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[1] :]]
    return [
        jsonl(folder / f"{name}.jsonl", {"id": f"first-{name}", "audio": "f.wav"}, *part)
        for name, part in zip("abc", parts, strict=True)
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sample_seed", [None, 0, 7])
def test_a_choice_and_then_all_is_the_same_as_all(tmp_path: Path, seed: int, sample_seed: int | None) -> None:
    """Fails if a chosen line is treated otherwise than in a full run, or a line is lost or planned twice afterwards."""
    manifests = messy(tmp_path, seed)
    whole = selected(tmp_path / "whole", manifests, None)
    ids: list[str] = []
    lines: list[tuple[str, int]] = []
    rejects = [NOTHING]
    for step, count in enumerate([3, 3, 10, None]):
        choice = None if count is None else Choice(count, sample_seed)
        some = selected(tmp_path / f"step-{step}", manifests, choice, ids, np.concatenate(rejects))
        if step == 1:
            assert not some, "the same choice again selects nothing"
        assert count is None or len(planned(some)) + len(refused(some)) <= count
        ids += planned(some)
        lines += refused(some)
        rejects += [reject_keys(table) for table in some.rejects()]
    assert sorted(ids) == sorted(planned(whole))
    assert Counter(lines) == Counter(refused(whole))


@pytest.mark.parametrize("count", [1, 5, 12, 100])
def test_a_limit_takes_the_first_lines_in_order(tmp_path: Path, count: int) -> None:
    """Fails if lines of a later manifest come before those of an earlier one, or rejected lines are not counted."""
    manifests = messy(tmp_path, 3)
    lines = [(path.name, number) for path in manifests for number in range(1, len(path.read_text().splitlines()) + 1)]
    whole = selected(tmp_path / "whole", manifests, None)
    some = selected(tmp_path / "some", manifests, Choice(count))
    first = set(lines[:count])
    assert refused(some) == [line for line in refused(whole) if line in first]
    kept = [
        (Path(row["manifest"]).name, row["line"])
        for table in some.tables()
        for row in table.select(["manifest", "line"]).to_pylist()
    ]
    assert kept and set(kept) <= first


def test_samples_of_one_seed_are_nested_and_seeds_differ(tmp_path: Path) -> None:
    """Fails if a larger sample leaves out lines of a smaller one, the seed has no effect, or the first lines are preferred."""
    manifest = jsonl(tmp_path / "m.jsonl", *({"id": f"r{n}", "audio": f"{n}.wav"} for n in range(1000)))
    small, large, other = (
        set(planned(selected(tmp_path / f"{count}-{seed}", [manifest], Choice(count, seed))))
        for count, seed in [(50, 1), (200, 1), (50, 2)]
    )
    assert (len(small), len(large), len(other)) == (50, 200, 50)
    assert small < large and len(small & other) < 25
    assert 300 < sum(int(name[1:]) for name in large) / 200 < 700


def test_the_order_of_the_files_does_not_change_a_sample(tmp_path: Path) -> None:
    """Fails if a sample depends on where in the manifests a row is."""
    rows = [{"id": f"r{n}", "audio": f"{n}.wav"} for n in range(100)]
    first = jsonl(tmp_path / "a.jsonl", *rows)
    second = jsonl(tmp_path / "b.jsonl", *reversed(rows))
    samples = [planned(selected(tmp_path / f"s-{path.stem}", [path], Choice(9, 0))) for path in (first, second)]
    assert sorted(samples[0]) == sorted(samples[1])


# -- the job


@pytest.mark.parametrize("option", [{"limit": 20}, {"sample": 20, "sample_seed": 5}], ids=["limit", "sample"])
def test_a_first_try_that_is_killed_and_then_the_whole(tmp_path: Path, monkeypatch, option: dict[str, int]) -> None:
    """Fails if the same command plans other rows after a kill, or again when it is done, or the full run loses or doubles one."""
    noop = without_ray(tmp_path, monkeypatch)
    rows = noop.clips("c", 40)
    manifests = [noop.manifest("a.jsonl", rows[:30]), noop.manifest("b.jsonl", [*rows[25:], {"id": "bad", "audio": 5}])]
    (tmp_path / "both").mkdir()
    for path in manifests:
        path.rename(tmp_path / "both" / path.name)
    both = tmp_path / "both"
    noop.kill_after = 1
    with pytest.raises(Killed):
        noop.job(both, **option)
    noop.kill_after = None
    (first,) = noop.job(both, **option)
    assert (first[0], first[1] + sum(first[2].values())) == ("000001", len(chosen_ids(noop.output)))
    tried = chosen_ids(noop.output)
    assert 15 <= len(tried) <= 20, "equal rows of two manifests count, and are planned once"
    assert noop.job(both, **option) == []
    (rest,) = noop.job(both)
    assert rest[0] == "000002" and sum(len(table) for table in rejects_of(noop.output)) == 1
    everything = sorted(noop.utterances()["recording_id"].to_pylist())
    assert everything == sorted(row["id"] for row in rows)
    assert noop.job(both) == []


def rejects_of(output: Path) -> list[pa.Table]:
    """Return the planning rejects of every plan that has any."""
    store = open_store(str(output))
    return [table for plan in load_plans(store) if (table := read_rejects(store, plan)) is not None]


def chosen_ids(output: Path) -> list[str]:
    """Return the ids that the plans hold, and a name for each reject of planning."""
    store = open_store(str(output))
    plans = load_plans(store)
    ids = [
        i for plan in plans for table in read_shards(store, plan.shards()) for i in table["recording_id"].to_pylist()
    ]
    return ids + [f"reject-{n}" for table in rejects_of(output) for n in range(table.num_rows)]


def test_a_choice_is_no_setting(tmp_path: Path, monkeypatch) -> None:
    """Fails if --limit or --sample becomes part of the dataset, whose later runs would be refused."""
    noop = without_ray(tmp_path, monkeypatch)
    manifest = noop.manifest("m.jsonl", noop.clips("c", 6))
    noop.job(manifest, limit=2)
    assert "limit" not in (noop.output / "_dataset.json").read_text()
    assert [run[1] for run in noop.job(manifest, sample=6)] == [4]

"""The history of an output: what a night reads of the nights before it, with and without the index."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.history import History
from pipeline.dataset.plan import load_plans
from pipeline.dataset.plan_index import chosen_segments
from pipeline.dataset.prune import find_leftovers
from pipeline.dataset.retries import find_retriable
from pipeline.dataset.survey import survey
from pipeline.errors import TRANSIENT_REASONS, Reason
from pipeline.layout import PAGE, REPORT, SUCCESS, attempt_key, rejects_key, run_key
from pipeline.manifest.hash_buckets import id_keys
from pipeline.storage.store import LocalStore
from tests.support.many_nights import CountingStore, MemoryStore, add_night, finish, many_nights, start

Told = tuple[object, ...]


def index_of(store: MemoryStore) -> list[str]:
    return store.keys("_runs/index")


def told(store: MemoryStore) -> Told:
    """Return all that a driver learns from a history, in a form that can be compared."""
    history, out = History(store), io.StringIO()
    held, refused = history.held(history.plans)
    retriable = find_retriable(history, history.plans, TRANSIENT_REASONS, 5)
    states = [(state.plan, state.whole, state.lost, state.drawn, state.outdated) for state in survey(history, out)]
    ids = Counter(key for keys in held for key in keys.tolist())
    return (
        history.plans,
        ids,
        Counter(refused.tolist()),
        retriable.keys.tolist(),
        retriable.owners,
        states,
        out.getvalue(),
    )


def without_index(store: MemoryStore) -> MemoryStore:
    return MemoryStore({key: content for key, content in store.objects.items() if not key.startswith("_runs/index/")})


def grown(nights: int = 7) -> MemoryStore:
    """Return an indexed output of nights with rejects of all kinds."""
    store = MemoryStore()
    for number in range(1, nights + 1):
        history = History(store)
        start(history)
        reason = Reason.NOT_FOUND if number % 2 else Reason.NOT_AUDIO
        add_night(store, number, rejected=[0, 2] if number % 3 else [], reason=reason, unreadable=number % 2)
        history.extend()
    return store


def test_the_index_tells_what_the_plans_tell() -> None:
    """Fails if the index loses an id, a reject, a reason or a plan, or has one twice: a row would be annotated twice or never."""
    store = grown()
    assert index_of(store) and told(store) == told(without_index(store))
    plans, ids, refused, retriable, *_ = told(store)
    assert plans == load_plans(store)
    names = [f"n{night:05d}-{row}" for night in range(1, 8) for row in range(3)]
    assert ids == Counter(id_keys(names).tolist()) and refused.total() == 4
    again = [f"n{night:05d}-{row}" for night in (1, 5, 7) for row in (0, 2)]
    assert sorted(retriable) == sorted(id_keys(again).tolist())


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.objects.pop(run_key("000002", REPORT)),
        lambda store: store.objects.pop(rejects_key("000002")),
        lambda store: store.objects.pop(run_key("000003", PAGE)),
        lambda store: store.objects.pop(run_key("000001", SUCCESS)),
        lambda store: store.objects.pop("utterances/000004-000000.parquet"),
        lambda store: store.put_if_absent(
            attempt_key("000001", 1), json.dumps({"failed_at": "2027", "report_is_outdated": True}).encode()
        ),
    ],
    ids=["report", "rejects", "page", "success", "part", "outdated"],
)
def test_what_changed_since_is_read_again(change: Callable[[MemoryStore], object]) -> None:
    """Fails if the index hides a file that was deleted or added after it was written."""
    store = grown()
    before = told(store)
    change(store)
    assert told(store) == told(without_index(store)) != before


def test_a_plan_that_was_written_again_is_not_taken_from_the_index() -> None:
    """Fails if an index outlives its plan: ids of a deleted run would be held, and those of the new one not."""
    store = grown(3)
    for key in [*store.keys("_runs/000002"), rejects_key("000002"), "utterances/000002-000000.parquet"]:
        del store.objects[key]
    add_night(store, 2, rows=5)
    assert told(store) == told(without_index(store))


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    ],
    ids=["empty", "cut", "one bit of a key"],
)
def test_a_damaged_index_is_not_used(damage: Callable[[bytes], bytes]) -> None:
    """Fails if a damaged object of the index ends the job, or what is left of it is believed."""
    store = grown()
    expected = told(store)
    for key in index_of(store):
        store.objects[key] = damage(store.objects[key])
    assert told(store) == expected


def test_a_run_that_ends_after_it_was_indexed_is_read_again() -> None:
    """Fails if the index fixes a plan as unfinished, or leaves out the rejects that it got later."""
    store = MemoryStore()
    plan = add_night(store, 1, published=False)
    history = History(store)
    start(history)
    history.extend()
    assert [state.whole for state in survey(History(store), io.StringIO())] == [False]
    finish(store, plan, [1])
    assert index_of(store) and told(store) == told(without_index(store))
    assert len(find_retriable(History(store), [plan], TRANSIENT_REASONS, 5).keys) == 1


@pytest.mark.parametrize("nights", [40])
def test_earlier_nights_cost_few_calls(nights: int) -> None:
    """Fails if each earlier night costs a call: 1,000 nights would begin with five thousand."""
    few, many = (_calls(count) for count in (1, nights))
    assert many.total() - few.total() <= 6, (few, many)
    assert _calls(nights, indexed=False).total() > 2 * nights, "the control: without an index"


def _calls(nights: int, *, indexed: bool = True) -> Counter[str]:
    store = CountingStore(many_nights(nights, indexed=indexed).objects)
    start(History(store))
    return store.calls


def test_prune_removes_what_a_larger_index_replaced(tmp_path: Path) -> None:
    """Fails if the index grows for good, or a part of it that is still read is removed."""
    store = LocalStore(tmp_path)
    for key, content in grown().objects.items():
        store.put_if_absent(key, content)
    store.put_if_absent("_dataset.json", b"{}")
    kept = chosen_segments(index_of(MemoryStore({entry.key: b"" for entry in store.list("_runs")})))
    leftovers = [leftover.key for leftover in find_leftovers(store, now_s=1e10)]
    existing = {entry.key for entry in store.list("_runs/index")}
    assert set(leftovers) == existing - {*kept} and leftovers and kept
    before = told(MemoryStore({entry.key: store.read(entry.key) for entry in store.list("")}))
    for key in leftovers:
        (tmp_path / key).unlink()
    assert told(MemoryStore({entry.key: store.read(entry.key) for entry in store.list("")})) == before

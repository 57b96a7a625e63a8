"""Every schedule of two jobs that retry the same rejected row, run on the real code over a store in memory.

As in `test_commit_schedules`, jobs are greenlets. A job gives up its turn before each write that other jobs can see, and
each read of an object that does not exist yet; a read of an object that exists commutes with everything, since objects
never change. Listings within one plan have their turns in `test_commit_schedules`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from greenlet import GreenletExit, greenlet

from pipeline.dataset import plan as plan_module
from pipeline.dataset import retries
from pipeline.dataset.history import History
from pipeline.dataset.parts import Receipt, committed_parts, ids_sha256, read_receipt, write_part
from pipeline.dataset.plan import Plan, ShardSize, load_plans, read_shard, write_plan
from pipeline.dataset.publish import is_published, publish
from pipeline.dataset.retries import find_retriable, write_plans
from pipeline.errors import Reason, Reject, Stage
from pipeline.layout import RUNS, part_key
from pipeline.manifest.hash_buckets import Keys, id_keys
from pipeline.manifest.staging import Selection, Staging
from tests.dataset.test_commit_schedules import _utterances
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings
from tests.support.selections import selection_of

IDS = ["a", "b", "c"]
MOST = 3
"""Runs that may try a row."""
EVERY = 24
"""Of the orders with a disturbance, every 24th is run, with a crash and a lost answer at each of its points."""
_PRIVATE = ("/shards/", "report.json", "rejects/", "/index/")
"""Keys that no other job reads before a later write, or that every job writes alike."""


class _Turns:
    """A store that gives the turn to the scheduler before each call whose outcome depends on other jobs."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner, self.root = inner, inner.root

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self.inner, name)

        def step(key: str, *arguments: object) -> object:
            waits = name == "read" and key not in self.inner.objects
            waits |= name == "list" and key == RUNS
            waits |= name == "put_if_absent" and not any(part in key for part in _PRIVATE)
            how = greenlet.getcurrent().parent.switch(name) if waits else "go"
            outcome = call(key, *arguments)
            return False if how == "lost answer" and name == "put_if_absent" else outcome

        return step


class _Player(greenlet):
    """A job under way, with the random names that it draws."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        super().__init__(run)
        self.name, self.drawn = name, 0


def _uuid4() -> SimpleNamespace:
    player = greenlet.getcurrent()
    player.drawn += 1
    return SimpleNamespace(hex=hashlib.sha256(f"{player.name} {player.drawn}".encode()).hexdigest())


@pytest.fixture(autouse=True, scope="module")
def _deterministic() -> Iterator[None]:
    """Plans whose names and times depend on their job only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "uuid", SimpleNamespace(uuid4=_uuid4))
        patch.setattr(
            plan_module, "time", SimpleNamespace(strftime=lambda *_: "2026-01-01T00:00:00Z", gmtime=lambda: None)
        )
        yield


class _Job:
    """A job that plans new and retried rows, finishes every plan, and annotates as its label says.

    Args:
        label: rows of the ids in it are rejected by this job.
    """

    def __init__(self, store: _Turns, staging: Staging, label: str) -> None:
        self.store, self.staging, self.label = store, staging, label

    def run(self) -> None:
        self.history = History(self.store)
        plans = self.history.plans

        def write(number: int, rows: Selection) -> Plan | None:
            return write_plan(
                self.store, number, rows, settings=job_settings(), models={}, embedding_widths={}, manifests=["m"],
                size=ShardSize(3, 1e9), needs_text=True, retries=self.retriable.owners_of(rows.tables()),
            )  # fmt: skip

        write_plans(self.store, plans, self._select(plans), write, lambda: self._select(plans))
        self.history.extend()
        for plan in plans:
            if not is_published(self.store, plan):
                self._finish(plan)

    def _select(self, plans: Sequence[Plan]) -> Selection:
        self.retriable = find_retriable(self.history, plans, {"NOT_FOUND"}, MOST)
        held, rejects = self.history.held(plans)
        return _selected(self.staging, held, rejects, self.retriable.keys)

    def _finish(self, plan: Plan) -> None:
        parts = committed_parts(self.store, [plan])[plan.plan]
        for shard in plan.shards():
            if shard.number not in parts:
                rows = read_shard(self.store, shard)
                ids = rows["recording_id"].to_pylist()
                rejects = tuple(
                    (row, Reject(Reason.NOT_FOUND, "no object", Stage.FETCH))
                    for row, name in enumerate(ids) if name in self.label
                )  # fmt: skip
                kept = rows.filter([name not in self.label for name in ids])
                receipt = Receipt(plan.plan, shard.number, f"{plan.plan}-{greenlet.getcurrent().name}", len(ids), kept.num_rows,
                                  ids_sha256(rows), plan.config_hash, {}, 0.0, {}, rejects)  # fmt: skip
                write_part(self.store, part_key(shard.name, ""), _utterances(kept, kept.num_rows, "joy"), receipt)
        publish(self.store, plan, committed_parts(self.store, [plan])[plan.plan], {"run_id": plan.plan})


_SELECTED: dict[tuple[bytes, bytes], Selection] = {}


def _selected(staging: Staging, held: Iterator[Keys], rejects: Keys, retriable: Keys) -> Selection:
    """Select rows once for each state of the output: staging is on disk, and much slower than the store."""
    batches = list(held)
    key = (b"".join(sorted(batch.tobytes() for batch in batches)), retriable.tobytes())
    if key not in _SELECTED:
        _SELECTED[key] = staging.select(batches, rejects, retriable)
    return _SELECTED[key]


@dataclass
class _Played:
    """The calls that the moves made, and the number of moves until one job at most was left."""

    calls: list[object]
    contested: int = 0


def _play(
    store: MemoryStore, staging: Staging, choices: Iterator[tuple[int, str]], labels: Sequence[str], name: str = "job"
) -> _Played:
    """Let jobs move as the choices say until all ended.

    Args:
        name: tells the jobs of this play from those of others.
    """
    players = [
        _Player(_Job(_Turns(store), staging, label).run, f"{name} {n} {label}") for n, label in enumerate(labels)
    ]
    alive = dict(enumerate(players))
    waiting = {number: player.switch() for number, player in alive.items()}
    alive = {number: player for number, player in alive.items() if not player.dead}
    played = _Played([])
    for who, how in choices:
        if not alive:
            break
        played.contested += len(alive) > 1
        number = sorted(alive)[who % len(alive)]
        played.calls.append(waiting[number])
        if how == "crash":
            alive.pop(number).throw(GreenletExit)
        else:
            waiting[number] = alive[number].switch(how)
            if alive[number].dead:
                del alive[number]
    for player in alive.values():
        player.throw(GreenletExit)
    return played


def _go() -> Iterator[tuple[int, str]]:
    return itertools.repeat((0, "go"))


def _check(store: MemoryStore) -> None:
    """Check the promise: each row is annotated once or rejected by its newest plan, and each retry was allowed."""
    plans = load_plans(store)
    owners: dict[str, list[tuple[Plan, bool]]] = {name: [] for name in IDS}
    for plan in plans:
        assert is_published(store, plan)
        parts = committed_parts(store, [plan])[plan.plan]
        for shard in plan.shards():
            rejected = {row for row, _ in read_receipt(store, parts[shard.number]).rejects}
            written = Counter(store.table(parts[shard.number])["recording_id"].to_pylist())
            for row, name in enumerate(read_shard(store, shard)["recording_id"].to_pylist()):
                assert (name in written) == (row not in rejected) and written[name] <= 1
                owners[name].append((plan, row not in rejected))
    taken: Counter[tuple[str, str]] = Counter()
    for name, tries in owners.items():
        assert tries and len(tries) <= MOST, f"{name} is planned {len(tries)} times"
        assert not any(annotated for _, annotated in tries[:-1]), f"{name} was retried although it is annotated"
        taken.update((first.plan, later.plan) for (first, _), (later, _) in itertools.pairwise(tries))
    assert taken == {(first, plan.plan): count for plan in plans for first, count in plan.retries.items()}
    assert not store.overwritten


@pytest.fixture(scope="module")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Staging:
    return selection_of(IDS, tmp_path_factory.mktemp("staging")).staging


@pytest.fixture(scope="module")
def rejected(staging: Staging) -> Callable[[], MemoryStore]:
    """Return a maker of outputs with one published plan, which rejected c."""
    template = MemoryStore()
    _play(template, staging, _go(), ["c"], "first")
    assert [plan.rows for plan in load_plans(template)] == [3]
    return template.copy


def _orders(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Every interleaving of two jobs of so many turns."""
    for chosen in itertools.combinations(range(first + second), second):
        yield tuple(int(turn in chosen) for turn in range(first + second))


_SETTLED: set[frozenset[tuple[str, bytes]]] = set()
"""Objects of the outputs that were settled and checked."""


def _schedule(
    store: MemoryStore, staging: Staging, order: Sequence[int], *, disturbed: int = -1, how: str = "go"
) -> _Played:
    moves = ((who, how if step == disturbed else "go") for step, who in enumerate(order))
    played = _play(store, staging, moves, ["", "c"])
    assert not store.overwritten
    objects = frozenset(store.objects.items())
    if objects not in _SETTLED:
        for number in range(2):  # the first may finish what others planned, and the second retry what they rejected
            _play(store, staging, _go(), [""], f"later {number}")
        _check(store)
        annotated = {name for plan in load_plans(store) for name in _annotated_by(store, plan)}
        tries = Counter(name for plan in load_plans(store) for name in _planned(store, plan))
        assert annotated == set(IDS) or (annotated == {"a", "b"} and tries["c"] == MOST)
        _SETTLED.add(objects)
    return played


def _planned(store: MemoryStore, plan: Plan) -> list[str]:
    return [name for shard in plan.shards() for name in read_shard(store, shard)["recording_id"].to_pylist()]


def _annotated_by(store: MemoryStore, plan: Plan) -> list[str]:
    parts = committed_parts(store, [plan])[plan.plan].values()
    return [name for key in parts for name in store.table(key)["recording_id"].to_pylist()]


@pytest.fixture(scope="module")
def in_every_order(rejected: Callable[[], MemoryStore], staging: Staging) -> list[tuple[tuple[int, ...], _Played]]:
    """Return the orders in which two jobs can move, and the moves of each, after a run and a check of it.

    Orders that differ only after one job has ended are one.
    """
    turns = len(_play(rejected(), staging, _go(), [""]).calls)
    ran: dict[tuple[int, ...], tuple[tuple[int, ...], _Played]] = {}
    for order in _orders(turns, turns):
        if not any(order[:contested] in ran for contested in range(len(order) + 1)):
            played = _schedule(rejected(), staging, order)
            ran[order[: played.contested]] = (order, played)
    return list(ran.values())


def test_two_jobs_that_retry_a_row_in_every_order(in_every_order: list[tuple[tuple[int, ...], _Played]]) -> None:
    """Fails if in some order two jobs take over the same row, or a row is annotated twice, lost or tried too often."""
    assert len(in_every_order) >= 700 and len(_SETTLED) >= 10
    print(f"{len(in_every_order)} schedules, {len(_SETTLED)} outputs, 0 violations")


def test_two_jobs_with_a_crash_or_a_lost_answer_at_every_point(
    rejected: Callable[[], MemoryStore], staging: Staging, in_every_order: list[tuple[tuple[int, ...], _Played]]
) -> None:
    """Fails if a job that is killed, or whose write's answer is lost, lets a row be annotated twice or lost."""
    schedules = 0
    crashes: set[tuple[int, ...]] = set()
    for order, played in in_every_order[::EVERY]:
        for step, call in enumerate(played.calls):
            ways = ["lost answer"] if call == "put_if_absent" else []
            if order[: step + 1] not in crashes:  # afterwards the other job moves alone, whatever the order was to be
                crashes.add(order[: step + 1])
                ways.append("crash")
            for how in ways:
                _schedule(rejected(), staging, order, disturbed=step, how=how)
                schedules += 1
    assert schedules >= 300
    print(f"{schedules} schedules, {len(crashes)} of them with a crash, {len(_SETTLED)} outputs, 0 violations")


def test_jobs_that_still_finish_the_run_that_rejects(staging: Staging) -> None:
    """Fails if a row is retried while the run that may still annotate it is unfinished; three jobs in random orders."""
    for seed in range(120):
        chance = random.Random(seed)
        store = MemoryStore()
        order = [chance.randrange(3) for _ in range(chance.randrange(10, 40))]
        labels = [chance.choice(["", "c", "bc"]) for _ in range(3)]
        how = chance.choice(["crash", "lost answer"])
        moves = ((who, how if step == 7 else "go") for step, who in enumerate(order))
        _play(store, staging, moves, labels)
        for number in range(3):
            _play(store, staging, _go(), [""], f"later {number}")
        _check(store)


def test_the_checker_sees_a_store_without_conditional_writes(
    rejected: Callable[[], MemoryStore], staging: Staging
) -> None:
    """The control: on a store that overwrites, some schedule must break the promise, or the checker is blind."""
    turns = len(_play(rejected(), staging, _go(), [""]).calls)
    for order in _orders(turns, turns):
        store = rejected()
        store.conditional = False
        _play(store, staging, ((who, "go") for who in order), ["", "c"])
        try:
            _check(store)
        except AssertionError:
            return
    pytest.fail("no schedule broke the promise")


def test_the_checker_sees_a_row_that_is_taken_over_too_early(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: if a plan need not be published nor the row rejected, a row is planned again while it may succeed."""
    first = MemoryStore()
    _play(first, staging, itertools.repeat((0, "go"), 2), [""])  # planned, without a part
    assert load_plans(first)
    early = retries.Retriable(np.sort(id_keys(["c"])), ("000001",))
    monkeypatch.setattr(f"{__name__}.find_retriable", lambda *_: early)
    _play(first, staging, _go(), [""], "later")
    with pytest.raises(AssertionError, match=r"retried although it is annotated|planned"):
        _check(first)

"""Every schedule of the commit protocol, run on the real code over a store in memory.

Runs are greenlets that yield at each listing and each write, so a schedule is a list of choices: who moves next, who crashes,
whose answer is lost. Other reads need no turn of their own: an object never changes once it is there, so a read commutes
with everything but the write that made it, and comes after the listing or write that told of it. All interleavings of
two runs are enumerated, with a crash or a lost answer at every turn; after each, an undisturbed run resumes, and the promise is
checked. Each schedule is run once: the runs differ in their labels only, so that one of them always moves first; after a crash
the other run moves alone, whatever the order was to be; only a write has an answer to lose.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from greenlet import GreenletExit, greenlet

from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset import parts as parts_module
from pipeline.dataset import publish as publish_module
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import Receipt, committed_parts, ids_sha256, read_receipt, write_part
from pipeline.dataset.plan import Plan, load_plans, read_shard, write_plan
from pipeline.dataset.publish import publish
from pipeline.dataset.tally import Rejects
from pipeline.errors import Reason, Reject, Stage
from pipeline.layout import part_key
from pipeline.schema import utterance_schema
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings
from tests.support.selections import selection_of

IDS = ["a", "b", "c"]
_TURNS = ("list", "put_if_absent")


class _Yielding:
    """A store whose every call first gives the turn to the scheduler; `lost` loses the answer of a write that took effect."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner, self.root = inner, inner.root

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self.inner, name)

        if name not in _TURNS:
            return call

        def step(*arguments: object) -> object:
            how = greenlet.getcurrent().parent.switch(name)
            outcome = call(*arguments)
            if how == "lost answer" and name == "put_if_absent":
                return False  # what a retry inside the client sees after a time-out: the key is there
            return outcome

        return step


def _planned(store: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    selection = selection_of(IDS, tmp_path_factory.mktemp("staging"))
    plan = write_plan(
        store, 1, selection, settings=job_settings(), models={}, embedding_widths={},
        manifests=["m"], size=ShardSize(3, 1e9), needs_text=True,
    )  # fmt: skip
    assert plan is not None and plan.num_shards == 1
    return plan


def _run(store: _Yielding, label: str) -> None:
    """What a driver does, with a recogniser whose label tells the runs apart."""
    (plan,) = load_plans(store.inner)  # it exists before both runs, so that reading it needs no turn
    parts = committed_parts(store, [plan])[plan.plan]
    for shard in plan.shards():
        if shard.number in parts:
            continue
        utterances, receipt = _annotated(store.inner, plan, shard.number, label)
        write_part(store, part_key(shard.name, ""), utterances, receipt)
    publish(store, plan, committed_parts(store, [plan])[plan.plan], {"run_id": plan.plan})


_MADE: dict[tuple[int, str], tuple[pa.Table, Receipt]] = {}


def _annotated(store: MemoryStore, plan: Plan, number: int, label: str) -> tuple[pa.Table, Receipt]:
    """A shard's utterances, and one reject in shard 0; made once for each run's label, which is its attempt too."""
    if (number, label) not in _MADE:
        rows = read_shard(store, list(plan.shards())[number])
        kept = rows.num_rows - 1 if number == 0 else rows.num_rows
        rejects = ((kept, Reject(Reason.NOT_FOUND, "no object", Stage.FETCH)),) if kept < rows.num_rows else ()
        receipt = Receipt(plan.plan, number, f"{number}-{label}", rows.num_rows, kept, ids_sha256(rows), plan.config_hash,
                          {}, 0.0, {}, rejects)  # fmt: skip
        _MADE[number, label] = (_utterances(rows, kept, label), receipt)
    return _MADE[number, label]


@pytest.fixture(autouse=True, scope="module")
def _parquet_made_once() -> Iterator[None]:
    """Parquet is written and parsed once for each content: the protocol is what is run ten thousand times."""
    parts: dict[str, bytes] = {}
    rejects: dict[tuple[object, ...], pa.Table] = {}
    files: dict[int, bytes] = {}
    real_part, real_rejects, real_bytes = (
        parts_module.part_bytes,
        publish_module._derive_rejects,
        publish_module.parquet_bytes,
    )

    def part_bytes(utterances: pa.Table, receipt: Receipt) -> bytes:
        if receipt.attempt not in parts:
            parts[receipt.attempt] = real_part(utterances, receipt)
        return parts[receipt.attempt]

    def derive_rejects(store: _Yielding, plan: Plan, refused: dict[int, Rejects]) -> pa.Table:
        key = (plan.token, *refused.items())
        if key not in rejects:
            rejects[key] = real_rejects(store.inner, plan, refused)
        return rejects[key]

    def parquet_bytes(table: pa.Table) -> bytes:
        return files.setdefault(id(table), files.get(id(table)) or real_bytes(table))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "part_bytes", part_bytes)
        patch.setattr(publish_module, "parquet_bytes", parquet_bytes)
        patch.setattr(publish_module, "_derive_rejects", derive_rejects)
        patch.setattr(parts_module, "parse_receipt", lru_cache(parts_module.parse_receipt))
        yield


@lru_cache
def _ids_in(content: bytes) -> list[str]:
    return list(pq.read_table(io.BytesIO(content))["recording_id"].to_pylist())


def _utterances(rows: pa.Table, kept: int, label: str) -> pa.Table:
    schema = utterance_schema({}, "float32", version=SCHEMA_VERSION)
    ids = rows["recording_id"].to_pylist()[:kept]
    return pa.Table.from_pylist(
        [
            {
                "utterance_id": f"{i}#0000", "recording_id": i, "segment_index": 0, "truncated": False, "language": "en",
                "text_source": "none", "label": label, "emotion": "joy", "confidence": 1.0, "margin": 1.0,
                "abstained": False, "scores": {"joy": 1.0}, "model": "m", "run_id": "r",
            }
            for i in ids
        ],
        schema=schema,
    )  # fmt: skip


def _play(store: MemoryStore, choices: Iterator[tuple[int, str]], runs: int) -> list[object]:
    """Let runs move as the choices say until all ended; returns the calls that the moves made."""
    yielding = _Yielding(store)
    players = [greenlet(lambda label=str(n): _run(yielding, label)) for n in range(runs)]
    alive = dict(enumerate(players))
    waiting = {number: player.switch() for number, player in alive.items()}  # up to the first storage call
    calls = []
    for who, how in choices:
        if not alive:
            break
        number = sorted(alive)[who % len(alive)]
        calls.append(waiting[number])
        if how == "crash":
            alive.pop(number).throw(GreenletExit)
        else:
            waiting[number] = alive[number].switch(how)
            if alive[number].dead:
                del alive[number]
    for player in alive.values():
        player.throw(GreenletExit)
    return calls


def _check(store: MemoryStore, plan: Plan) -> None:
    """The promise: every planned row once in utterances or rejects, receipts that add up, published."""
    found = [
        i for folder in ("utterances", "rejects") for key in store.keys(folder) for i in _ids_in(store.objects[key])
    ]
    assert sorted(found) == IDS
    assert store.keys("_runs/000001/_SUCCESS")
    attempts = {read_receipt(store, key).attempt for key in store.keys("utterances")}
    assert len(attempts) == plan.num_shards
    assert not store.overwritten


def _settle(store: MemoryStore, plan: Plan) -> None:
    _play(store, itertools.repeat((0, "go")), runs=1)
    _check(store, plan)


def _steps_of_one_run(fresh: Callable[[], MemoryStore]) -> int:
    return len(_play(fresh(), itertools.repeat((0, "go")), runs=1))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[], MemoryStore], Plan]:
    template = MemoryStore()
    plan = _planned(template, tmp_path_factory)
    return template.copy, plan


def test_two_runs_in_every_order_with_a_crash_at_every_point(planned: tuple[Callable[[], MemoryStore], Plan]) -> None:
    """Fails if any interleaving of two runs, one of them killed anywhere or its answer lost, loses or doubles a row."""
    fresh, plan = planned
    schedules = 0
    crashes: set[tuple[int, ...]] = set()
    for order in _orders(_steps_of_one_run(fresh)):
        calls = _scheduled(fresh(), plan, order)
        lost = [(step, "lost answer") for step, call in enumerate(calls) if call == "put_if_absent"]
        killed = [(step, "crash") for step in range(len(calls)) if order[: step + 1] not in crashes]
        crashes |= {order[: step + 1] for step, _ in killed}
        for step, how in [*lost, *killed]:
            _scheduled(fresh(), plan, order, disturbed=step, how=how)
        schedules += 1 + len(lost) + len(killed)
    assert schedules >= 3_000 and len(crashes) >= 900
    print(f"{schedules} schedules, {len(crashes)} of them with a crash, 0 violations")


def _scheduled(
    store: MemoryStore, plan: Plan, order: Sequence[int], *, disturbed: int = -1, how: str = "go"
) -> list[object]:
    """Let two runs move in an order, one move of which is disturbed, then one alone, and check the promise."""
    calls = _play(store, ((who, how if step == disturbed else "go") for step, who in enumerate(order)), runs=2)
    _settle(store, plan)
    return calls


def _orders(steps: int) -> Iterator[tuple[int, ...]]:
    """Every interleaving of two runs of so many turns, of which the first run has the first."""
    for second in itertools.combinations(range(1, 2 * steps), steps):
        yield tuple(int(turn in second) for turn in range(2 * steps))


def test_a_third_run_after_two_crashes(planned: tuple[Callable[[], MemoryStore], Plan]) -> None:
    """Fails if what two killed runs leave behind cannot be finished by a third."""
    fresh, plan = planned
    steps = _steps_of_one_run(fresh)
    for first, second in itertools.product(range(steps + 1), repeat=2):
        store = fresh()
        for killed_at in (first, second):
            moves = itertools.chain(itertools.repeat((0, "go"), killed_at), [(0, "crash")])
            _play(store, moves, runs=1)
        _settle(store, plan)


def test_the_checker_sees_a_store_without_conditional_writes(planned: tuple[Callable[[], MemoryStore], Plan]) -> None:
    """The control: on a store that overwrites, some schedule must break the promise, or the checker is blind."""
    fresh, plan = planned
    steps = _steps_of_one_run(fresh)
    broken = 0
    for order in itertools.islice(_orders(steps), 300):
        store = fresh()
        store.conditional = False
        _play(store, ((who, "go") for who in order), runs=2)
        try:
            _check(store, plan)
        except AssertionError:
            broken += 1
    assert broken

"""The audit of an output, whether finished, damaged or still being written. It only reads.

Costs: one listing, and the footer and three id columns of each part; with `deep` the whole of each part once. Memory: 16
bytes per reject, and the shards being checked. Disk: 24 bytes per plan row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.config.settings import Settings, canonical_hash
from pipeline.dataset.compatibility import add_columns, compare_models, compare_settings, different_columns
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.publish import is_published
from pipeline.dataset.verify.index import KeySum, check_index
from pipeline.dataset.verify.invariants import Audit, Invariant, PlanState, Tell, Violation
from pipeline.dataset.verify.outline import Outline, read_outline
from pipeline.dataset.verify.parts import Inspected, inspect_part
from pipeline.dataset.verify.plans import IdLedger, PlannedShard, planned_shards, sound_plan
from pipeline.dataset.verify.published import Tally, check_published
from pipeline.dataset.verify.reading import DamagedFile, MissingFile, document, parquet
from pipeline.errors import ConfigError
from pipeline.layout import DATASET, SUCCESS, part_key, plan_key, texts_file
from pipeline.pins import pins_document
from pipeline.redaction import without_query
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store
from pipeline.storage.temporary import temporary_folder

_READERS = {False: 16, True: 4}
"""Parts read concurrently, by `deep`: reading footers mostly waits for the store; deep reading holds a row group each."""
_SHARDS_IN_HAND = 64


def audit(store: Store, *, deep: bool = False, tell: Tell = lambda violation: None) -> Audit:
    """Check an output against all invariants.

    Args:
        deep: read every page and check every value.
        tell: called with each violation when it is found.
    Raises: ConfigError when there is no output or the store cannot be read.
    """
    outline = read_outline(store)
    with temporary_folder("audit-") as folder:
        auditor = _Auditor(store, outline, IdLedger(folder), deep=deep, tell=tell)
        auditor.run()
    return Audit(
        output=without_query(store.root),
        deep=deep,
        plans=tuple(auditor.states),
        unreadable_plans=len(outline.plans) - len(auditor.plans),
        violations=tuple(auditor.violations),
        leftovers=len(auditor.leftovers),
        leftover_bytes=sum(auditor.leftovers.values()),
    )


class _Auditor:
    """The state of one running audit."""

    def __init__(self, store: Store, outline: Outline, ledger: IdLedger, *, deep: bool, tell: Tell) -> None:
        self.store, self.outline, self.ledger, self.deep, self.tell = store, outline, ledger, deep, tell
        self.violations: list[Violation] = []
        self.states: list[PlanState] = []
        self.plans: list[Plan] = []
        self.ids: defaultdict[str, KeySum] = defaultdict(KeySum)
        self.unread: set[str] = set()  # plans with rows that could not be read
        self.doubtful: set[str] = set()  # plans with rejects that could not be read
        self.leftovers = {file.key: file.size_bytes for file in outline.temporaries}

    def broken(self, invariant: Invariant, key: str, sentence: str) -> None:
        self.add([Violation(invariant, key, sentence)])

    def add(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self.violations.append(violation)
            self.tell(violation)

    def run(self) -> None:
        settings = self._dataset()
        self._read_plans()
        if any(plan.erasure and SUCCESS not in self.outline.published.get(plan.plan, {}) for plan in self.plans):
            # its rows are in some files and not in others; nothing else can be said until it is finished
            self.states += [self._erasure_state(plan) for plan in self.plans if plan.erasure]
            return
        if settings is not None:
            self._compare(settings)
        for plan in self.plans:
            if plan.erasure is None:
                self._plan(plan)
            else:
                self._erasure(plan)
        self._repeated()
        self._strays()
        self._unnamed()
        if self.deep and len(self.plans) == len(self.outline.plans):
            whole = [plan for plan in self.plans if plan.plan not in self.unread]
            self.add(check_index(self.store, whole, self.ids))

    # -- the dataset

    def _dataset(self) -> Settings | None:
        """Read the settings that all plans share; None when `_dataset.json` is missing or damaged."""
        try:
            return Settings.of(document(self.store, DATASET).get("settings"))
        except ValueError as error:
            self.broken(Invariant.DATASET_DAMAGED, DATASET, f"cannot be read: {error}")
        except MissingFile:
            if self.outline.empty:
                raise ConfigError(f"no output of this pipeline exists at {without_query(self.store.root)}") from None
            self.broken(Invariant.DATASET_DAMAGED, DATASET, "is missing although an output exists")
        except DamagedFile as error:
            self.broken(Invariant.DATASET_DAMAGED, DATASET, str(error))
        return None

    def _read_plans(self) -> None:
        for first, last in self.outline.gaps():
            several = f"; the next {int(last) - int(first)} are missing too" if last != first else ""
            self.broken(Invariant.PLAN_GAP, plan_key(first), f"is missing although later plans exist{several}")
        for name in self.outline.plans:
            try:
                self.plans.append(sound_plan(self.store, name))
            except DamagedFile as error:
                parts = len(self.outline.parts.get(name, ()))
                self.broken(Invariant.PLAN_DAMAGED, plan_key(name), f"{error}; its {parts:,} parts cannot be checked")

    def _compare(self, settings: Settings) -> None:
        """Check that all plans have the dataset's settings, models and column types."""
        earlier: dict[str, Plan] = {}  # one plan for each choice of models
        columns: dict[str, pa.Field] = {}
        for plan in self.plans:
            try:
                compare_settings(settings, plan.settings)
                compare_models(earlier.values(), plan.models)
            except ConfigError as error:
                difference = " ".join(str(error).split("\n  ")[1:])
                self.broken(Invariant.DATASET_MIXED, plan_key(plan.plan), f"differs from the dataset: {difference}")
            extra = plan.extra
            other = different_columns(extra, columns)
            if other:
                sentence = f"has other types or another spelling than earlier plans for {', '.join(other[:5])}"
                self.broken(Invariant.DATASET_MIXED, plan_key(plan.plan), sentence)
            earlier.setdefault(canonical_hash(pins_document(plan.models)), plan)
            add_columns(columns, extra)

    # -- one plan

    def _plan(self, plan: Plan) -> None:
        parts = self.outline.parts.get(plan.plan, {})
        seen = self.outline.published.get(plan.plan, {})
        tally = Tally(plan)
        unread = self._shards(plan, parts, tally)
        if unread:
            self.unread.add(plan.plan)
        if unread or tally.missing or not tally.whole:
            self.doubtful.add(plan.plan)
        try:
            rejects = tally.add_planning_rejects(self.store, deep=self.deep)
            if rejects != plan.rejects:
                tally.whole = False
                sentence = f"counts {plan.rejects:,} rejects, but its rejects file has {rejects:,}"
                self.broken(Invariant.PLAN_DAMAGED, plan_key(plan.plan), sentence)
        except DamagedFile as error:
            tally.whole = False
            self.broken(Invariant.PLAN_DAMAGED, str(plan.rejects_file), str(error))
        self.add(check_published(self.store, tally, seen, unread=unread, deep=self.deep))
        state = PlanState(
            plan.plan,
            plan.rows + plan.rejects,
            plan.num_shards,
            tally.parts,
            SUCCESS in seen,
            tally.utterances,
            tally.rejects,
            self.outline.attempts[plan.plan],
            sum(plan.excluded.values()),
            plan.retries,
            sum(plan.erased.values()),
        )
        self.states.append(state)

    def _erasure(self, entry: Plan) -> None:
        """Check an erasure: its tombstones, and that the runs state it."""
        erasure = entry.erasure
        self.states.append(self._erasure_state(entry))
        stated = {plan.plan: plan.erased.get(entry.plan) for plan in self.plans if entry.plan in plan.erased}
        expected = {name: lost.rows + lost.rejects for name, lost in (erasure.plans if erasure else {}).items()}
        if stated != expected and len(self.plans) == len(self.outline.plans):
            sentence = f"erases rows of runs {', '.join(expected)}, but other numbers of rows are missing from these"
            self.broken(Invariant.PLAN_DAMAGED, plan_key(entry.plan), sentence)
        try:
            with parquet(self.store, erasure.file if erasure else "") as file:
                list(file.batches(1 << 16, None))
        except DamagedFile as error:
            self.broken(Invariant.PLAN_DAMAGED, erasure.file if erasure else "", str(error))

    def _erasure_state(self, entry: Plan) -> PlanState:
        lost = entry.erasure.plans.values() if entry.erasure else ()
        done = SUCCESS in self.outline.published.get(entry.plan, {})
        count = sum(each.rows + each.rejects for each in lost)
        return PlanState(entry.plan, 0, 0, 0, done, 0, 0, erases=count)

    def _shards(self, plan: Plan, parts: dict[int, list[str]], tally: Tally) -> int:
        """Check the parts of a plan against its shards. Returns: the number of shards that could not be read from the plan."""
        rows = shards = 0
        for number, keys in sorted(parts.items()):
            if number >= plan.num_shards:
                for key in sorted(keys):
                    self.broken(Invariant.PART_BEYOND_PLAN, key, f"plan {plan.plan} has {plan.num_shards:,} shards")
        with ThreadPoolExecutor(_READERS[self.deep]) as pool:
            for batch in self._planned(plan):
                inspections = []
                for planned in batch:
                    self.ids[plan.plan].add(self.ledger.add(planned))
                    rows += planned.rows.num_rows
                    shards += 1
                    standing = self._standing(planned, parts, tally)
                    if standing is not None:
                        inspections.append(pool.submit(self._inspect, plan, planned, standing))
                for inspection in inspections:
                    inspected = inspection.result()
                    self.add(inspected.violations)
                    tally.add(inspected.planned, inspected.receipt)
                    if inspected.receipt is not None:
                        self.ledger.reject(inspected.planned, (row for row, _ in inspected.receipt.rejects))
        if shards == plan.num_shards and rows != plan.rows:
            tally.whole = False
            sentence = f"counts {plan.rows:,} rows, but its shards have {rows:,}"
            self.broken(Invariant.PLAN_DAMAGED, plan_key(plan.plan), sentence)
        return plan.num_shards - shards

    def _planned(self, plan: Plan) -> Iterator[list[PlannedShard]]:
        """Yield the shards of a plan in batches; an unreadable file is a violation."""
        for number, (file, _) in enumerate(plan.files):
            batch: list[PlannedShard] = []
            try:
                for planned in planned_shards(self.store, plan, number, deep=self.deep):
                    batch.append(planned)
                    if len(batch) == _SHARDS_IN_HAND:
                        yield batch
                        batch = []
            except DamagedFile as error:
                self.broken(Invariant.PLAN_DAMAGED, file, str(error))
            yield batch

    def _standing(self, planned: PlannedShard, parts: dict[int, list[str]], tally: Tally) -> str | None:
        """Return the key of a shard's part, or None; of several parts, the one with the planned key."""
        keys = sorted(parts.get(planned.shard.number, ()))
        if not keys:
            tally.missing.append(planned.key or part_key(planned.shard.name, ""))
            return None
        standing = planned.key if planned.key in keys else keys[0]
        for key in keys:
            if key != standing:
                sentence = f"is a second part of shard {planned.shard.name}, beside {standing}"
                self.broken(Invariant.PART_TWICE, key, sentence)
        return standing

    def _inspect(self, plan: Plan, planned: PlannedShard, key: str) -> Inspected:
        return inspect_part(self.store, plan, planned, key, deep=self.deep)

    # -- ids and files across plans

    def _repeated(self) -> None:
        """Check that an id is in two plans only where the later one takes over a row that the earlier one rejected."""
        plans = {plan.plan: plan for plan in self.plans}
        taken: Counter[tuple[str, str]] = Counter()
        for each in self.ledger.repeated():
            first, later = each.first, plans[each.shard.plan]
            if first in later.retries:
                taken[first, later.plan] += each.count * each.rejected
                if each.rejected or self._is_doubtful(first):
                    continue
            owner = "twice in it" if first == later.plan else f"in plan {first} too"
            if each.rejected:
                owner += ", which rejected them, but it does not state that it takes them over"
            sentence = f"{each.count:,} of its recording ids are {owner}, such as {self._id(each.shard, each.row)}"
            self.broken(Invariant.ID_TWICE, plan_key(later.plan), sentence)
        for plan in self.plans:
            for first, stated in plan.retries.items():
                self._taken_over(plan, plans.get(first), first, stated, taken[first, plan.plan])

    def _is_doubtful(self, name: str) -> bool:
        """Return whether the rejects of a plan are not all known: its files are damaged, or were listed before it ended."""
        return name in self.doubtful or SUCCESS not in self.outline.published.get(name, {})

    def _taken_over(self, plan: Plan, earlier: Plan | None, first: str, stated: int, found: int) -> None:
        """Check the number of rows that a plan takes over from an earlier one, which must be published."""
        key = plan_key(plan.plan)
        if earlier is None and first in self.outline.plans:
            return  # its own violation is reported
        with reaching(self.store, key):
            published = earlier is not None and int(first) < int(plan.plan) and is_published(self.store, earlier)
        if not published:
            sentence = f"takes over {stated:,} rows of plan {first}, which is not published"
            self.broken(Invariant.RETRY, key, sentence)
        elif stated != found and not self._is_doubtful(first) and plan.plan not in self.unread:
            sentence = (
                f"states that it takes over {stated:,} rows that plan {first} rejected, but has {found:,} of them"
            )
            self.broken(Invariant.RETRY, key, sentence)

    def _id(self, shard: Shard, row: int) -> str:
        """Read a recording id for a message: the ledger has only hashes."""
        try:
            with parquet(self.store, shard.file) as file:
                return repr(file.row_group(shard.row_group, ["recording_id"])["recording_id"][row].as_py())
        except DamagedFile:
            return f"row {row} of shard {shard.name}"

    def _strays(self) -> None:
        known = set(self.outline.plans)
        for name, parts in sorted(self.outline.parts.items()):
            if name not in known:
                for keys in parts.values():
                    for key in sorted(keys):
                        self.broken(Invariant.ORPHAN, key, f"belongs to plan {name}, which does not exist")
        for name, results in sorted(self.outline.published.items()):
            if name not in known:
                for key in sorted(results.values()):
                    self.broken(Invariant.ORPHAN, key, f"belongs to plan {name}, which does not exist")
        for key in self.outline.strays:
            self.broken(Invariant.ORPHAN, key, "is among the results, but no plan names it")

    def _unnamed(self) -> None:
        """Collect shard files that no plan names, from planners that lost, were killed or still run. Not a violation."""
        named = {file for plan in self.plans for file in plan.named_files}
        texts = {texts_file(file): plan.plan for plan in self.plans for file, _ in plan.files}
        unreadable = set(self.outline.plans) - {plan.plan for plan in self.plans}
        for file in self.outline.shard_files:
            if file.key in named and SUCCESS in self.outline.published.get(texts.get(file.key, ""), {}):
                self.broken(Invariant.TEXTS, file.key, "has the texts of a finished run, which --texts deletes")
            if file.key not in named and file.key.split("/")[1] not in unreadable:
                self.leftovers[file.key] = file.size_bytes

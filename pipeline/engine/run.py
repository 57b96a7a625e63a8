"""The driver of a run: reads manifests, plans new rows, runs unfinished shards, publishes.

While planning, the driver holds four bytes per row, and counts; audio and rows stay on the workers and in the store.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO

from pipeline.config import JobConfig
from pipeline.config.settings import SCHEMA_VERSION, Settings
from pipeline.dataset.compatibility import (
    claim_dataset,
    compare_models,
    compare_settings,
    dataset_settings,
    settle_types,
    with_columns,
)
from pipeline.dataset.exclusion import exclusion_lines, policy_of, require_agreement
from pipeline.dataset.history import History
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, tiny_shards_warning, write_plan
from pipeline.dataset.publish import publish
from pipeline.dataset.renewal import renew
from pipeline.dataset.retries import Retriable, find_retriable, refuse_remaking, write_plans
from pipeline.dataset.row_checks import check_partition_columns, check_rows, check_turns_column
from pipeline.dataset.survey import pending_shards, survey
from pipeline.dataset.tombstones import tombstones
from pipeline.engine import estimate
from pipeline.engine.destination import unshared_warning
from pipeline.engine.failures import CANNOT_FINISH, give_up_runs, record_failure, stuck
from pipeline.engine.job_log import log_shard, report_warnings
from pipeline.engine.late import cluster, run_shards, visible_resources
from pipeline.engine.lineage import Lineage, lineage_of
from pipeline.engine.pools import Resources, choose_device, shard_size, size_pools
from pipeline.engine.progress import Progress
from pipeline.engine.rates import check_rates
from pipeline.engine.reading import Reading
from pipeline.errors import NoWorkersError
from pipeline.layout import PROBE
from pipeline.manifest.choice import chosen_lines
from pipeline.manifest.policy import Policy
from pipeline.manifest.read import expand
from pipeline.manifest.staging import Selection, Staging
from pipeline.models import roles
from pipeline.models.checkpoints.lock import Prepared
from pipeline.models.checkpoints.pinning import Pinning, refusal_first
from pipeline.models.processor import slow_precision
from pipeline.models.roles import Needs
from pipeline.pins import ModelPin, Pins, Role, pins_document
from pipeline.redaction import without_query
from pipeline.shard.commit import Finished
from pipeline.shard.context import Work, audio_roots
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store, require_conditional_writes
from pipeline.storage.temporary import temporary_folder


@dataclass
class Driver:
    """The driver of one run of `config`.

    Attributes:
        out: stream for messages to the user; must not be file descriptor 2, which is redirected while Ray runs.
        excluded: number of rows of the manifests that the policy excluded, by option; set by `read`.
    """

    config: JobConfig
    out: TextIO
    store: Store = field(init=False)
    prepared: Prepared | None = field(init=False)
    manifests: list[str] = field(init=False)
    dataset: Settings | None = field(init=False)
    history: History = field(init=False)
    plans: list[Plan] = field(init=False)
    policy: Policy = field(init=False)
    retriable: Retriable = field(init=False, default_factory=Retriable)
    undrawn: list[str] = field(init=False, default_factory=list)
    excluded: Mapping[str, int] = field(init=False, default_factory=dict)
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.policy = policy_of(self.config)
        self.lineage = lineage_of(self.config, self.out)
        self.prepared = roles.prepared_models(self.config)
        self.manifests = expand(self.config.manifest, output=self.config.output)
        self.store = open_store(self.config.output)
        self.dataset = dataset_settings(self.store)
        self.history = History(self.store)
        self.plans = self.history.plans
        if self.dataset is not None:  # refuse other settings before reading manifests
            compare_settings(self.dataset, self._settings("cpu"))

    @property
    def _schema_version(self) -> int:
        return SCHEMA_VERSION if self.dataset is None else self.dataset.schema_version

    def _settings(self, device: str) -> Settings:
        """Return the settings of new rows; `auto` takes the dataset's value."""
        return self.config.resolved(device, self.dataset)

    # -- reading

    def read(self, folder: Path, reading: Reading | None = None) -> Selection:
        """Read the manifests and select the new rows."""
        roots = AudioRoots.parse(self.config.audio_root, self.manifests)
        known = set(roles.known_languages(self.config, self.prepared))
        check = partial(check_rows, self.config, version=self._schema_version, roots=roots, known=known)
        reading = reading or Reading(self.manifests)
        audio_optional = self.config.mode == "text"
        return self._select(reading.stage(partial(self._staging, folder), check, audio_optional=audio_optional))

    def _staging(self, folder: Path) -> Staging:
        words = self.config.texts == "keep"
        return Staging(folder, choice=chosen_lines(self.config), policy=self.policy, words=words)

    def _select(self, staging: Staging) -> Selection:
        """Select the rows that no plan holds yet, with the column types of the existing plans."""
        staging.extra = settle_types(staging.inferred, self.plans)
        if staging.rows:
            check_partition_columns(self.config, staging.extra)
            check_turns_column(self.config, staging.extra)
        else:  # without rows there are no partition folders
            staging.extra = with_columns(staging.extra, self.config.partition_by, self.plans)
        config = self.config
        self.retriable = find_retriable(self.history, self.plans, config.retry_rejects, config.max_attempts)
        held = self.history.held(self.plans)
        selection = staging.select(*held, self.retriable.keys, tombstones(self.store, self.plans).matches)
        self.excluded = selection.excluded
        return selection

    # -- running

    def run(self) -> list[dict[str, Any]]:
        """Plan new rows, finish every unfinished plan, and publish. Returns: their reports; empty if nothing was to do."""
        with self.lineage:
            reports = self._run()
            self.lineage.finished(reports, self.history.plans, self.store)
        return reports

    def _run(self) -> list[dict[str, Any]]:
        with temporary_folder() as folder, ExitStack() as started:
            reading = Reading.of(self.manifests)
            resources = reading.start(started, cluster, self.out)
            selection = self.read(folder, reading)
            give_up_runs(self.store, self.plans, self.config.give_up, self.out)
            states = survey(self.history, self.out)
            self.undrawn = [state.plan.plan for state in states if state.whole and not state.drawn]
            unfinished = [state.plan for state in states if not state.whole]
            require_agreement(self.store, unfinished, self.policy)
            for line in exclusion_lines(selection):
                print(line, file=self.out)
            needs = roles.needs_of(selection.tables(), self.config, self.prepared)
            chosen = roles.choose(self.config, needs.languages, needs_asr=needs.asr, prepared=self.prepared)
            with self._start_pinning(needs, chosen) as pinning, ExitStack() as stack:
                pinned = cache(partial(self._pinned, pinning, chosen))
                if self._settings("cpu").precision == "int8" or not (selection or unfinished):
                    pinned()  # few models have int8: the others are refused before Ray starts
                if not selection and not unfinished:
                    return []
                print(f"{selection.rows:,} new rows; checking models and starting Ray", file=self.out)
                if resources is None:
                    with refusal_first(pinned):
                        resources = stack.enter_context(cluster(self.out))
                models = pinned()
                for sentence in pinning.warnings if pinning else ():
                    print(f"warning: {sentence}", file=self.out)
                require_conditional_writes(self.store, PROBE)
                for warning in self._warnings(resources):
                    print(f"warning: {warning}", file=self.out)
                planned = self._plan(selection, resources, *models) if selection else []
                return self._finish_all(planned, unfinished, selection.staging, resources)

    def _warnings(self, resources: Resources) -> list[str]:
        device = choose_device(self.config, resources)
        slow = slow_precision(self._settings(device).precision) if device == "cpu" else None
        return [warning for warning in (unshared_warning(self.config.output, resources.nodes), slow) if warning]

    def _finish_all(
        self, planned: list[Plan], unfinished: list[Plan], staging: Staging, resources: Resources
    ) -> list[dict[str, Any]]:
        """Finish every plan, new ones first, so that a fault in an old plan cannot delay them.

        Raises: StuckPlansError, after trying the others, when a plan cannot be finished; without workers the others are not
            tried.
        """
        done: dict[str, dict[str, Any]] = {}
        failures = []
        for plan in [*planned, *unfinished]:
            try:
                done[plan.plan] = self._finish(plan, resources, None if plan in planned else staging)
            except CANNOT_FINISH as error:
                failures.append(record_failure(self.store, plan, error))
                if isinstance(error, NoWorkersError):
                    break
        reports = [done[name] for name in sorted(done)]
        if failures:
            raise stuck(failures, reports)
        return reports

    def _start_pinning(self, needs: Needs, chosen: Mapping[Role, str]) -> AbstractContextManager[Pinning | None]:
        """Start to resolve and check the models of new rows and earlier plans; the context is None without any.

        Args:
            chosen: the models of the new rows.
        """
        languages = needs.languages | {role.language for plan in self.plans for role in plan.models}
        asr = needs.asr or any(plan.needs_asr for plan in self.plans)
        known = roles.choose_known(self.config, languages, needs_asr=asr, prepared=self.prepared)
        wanted = {**known, **chosen}
        rules = self.config.label_rules(self._schema_version, self._settings("cpu").precision)
        return Pinning(wanted, self.config.mode, self.prepared, rules) if wanted else nullcontext()

    def _pinned(
        self, pinning: Pinning | None, chosen: Mapping[Role, str]
    ) -> tuple[dict[Role, ModelPin], dict[str, int]]:
        """Return the models of the new rows, compared with those of earlier plans, and the widths of kept embeddings."""
        if pinning is None:
            return {}, {}
        pinned, widths = pinning.result()
        compare_models(self.plans, pinned)
        roles.require_calibration(pinned, self._settings("cpu"))
        return {role: pinned[role] for role in chosen}, self._kept(widths)

    def _kept(self, widths: dict[str, int]) -> dict[str, int]:
        return {name: width for name, width in widths.items() if name in self.config.embeddings}

    def _plan(self, selection: Selection, resources: Resources, pinned: Pins, widths: dict[str, int]) -> list[Plan]:
        """Write the new plans. Returns: the plans to finish, those of planners that were faster included."""
        device = choose_device(self.config, resources)
        size = shard_size(self.config, selection.rows, device, resources)
        if self.dataset is None:  # another run may have created it since
            self.dataset = dataset_settings(self.store)
        settings = self._settings(device)
        claim_dataset(self.store, settings)
        staging = selection.staging

        def write(number: int, rows: Selection) -> Plan | None:
            plan = write_plan(
                self.store,
                number,
                rows,
                settings=settings,
                models=pinned,
                embedding_widths=widths,
                manifests=list(map(without_query, self.manifests)),
                size=size,
                needs_text=self.config.mode != "audio",
                audio_roots=AudioRoots.parse(self.config.audio_root, self.manifests).absolute(),
                retries=self.retriable.owners_of(rows.tables()),
            )
            if plan is not None and (warning := tiny_shards_warning(plan)):
                print(f"warning: {warning}", file=self.out)
            return plan

        def reselect() -> Selection:
            require_agreement(self.store, self.plans[known:], self.policy)
            compare_models(self.plans, pinned)
            return self._select(staging)

        known = len(self.plans)
        planned = write_plans(self.store, self.plans, selection, write, reselect)
        self.history.extend()
        return planned

    def _finish(self, plan: Plan, resources: Resources, staging: Staging | None) -> dict[str, Any]:
        """Run the shards of one plan that have no part, then publish it.

        Args:
            staging: rows of the current manifest, for a plan made from an earlier one.
        """
        started, started_at = time.monotonic(), _now()
        pending = pending_shards(self.store, plan)
        refuse_remaking(plan, pending, self.plans)
        if staging is not None:
            pending = renew(self.store, plan, pending, staging)
        random.shuffle(pending)  # a concurrent run of the plan then works on other shards; each skips committed ones
        record: dict[str, Any] = {}
        if pending:
            pools = size_pools(self.config, resources, plan, len(pending))
            print(self._headline(plan, len(pending), pools.device), file=self.out)
            progress = Progress(rows=plan.rows, done=_rows_done(plan, len(pending)), out=self.out).start()
            config = self._config_for(plan)
            work = Work(self.store.root, plan, audio_roots(plan, self.config.audio_root))
            try:
                run_shards(work, pending, pools, config, partial(self._count, progress, work, config.max_reject_rate))
            finally:
                progress.close()
            record = {"pools": asdict(pools), "shards_lost_to_another_run": progress.lost}
        report = {
            "run_id": plan.plan,
            "output": without_query(self.config.output),
            "manifests": list(map(without_query, plan.manifests)),
            "planned_at": plan.created_at,
            "started_at": started_at,
            "finished_at": _now(),
            "wall_seconds": round(time.monotonic() - started, 3),
            "shards_run": len(pending),
            "settings": plan.settings.document(),
            "models": pins_document(plan.models),
            "config_hash": plan.config_hash,
            "versions": roles.versions(),
            "resources": asdict(resources),
            **({"page": False} if self.config.no_page else {}),
            **record,
        }
        published = publish(self.store, plan, committed_parts(self.store, [plan])[plan.plan], report)
        for warning in report_warnings(published):
            print(f"warning: {warning}", file=self.out)
        return published

    def _config_for(self, plan: Plan) -> JobConfig:
        """Return the configuration for a plan.

        `--max-reject-rate` applies only to plans of the given manifests. Rows that are retried are expected to fail again, so
        their plan has no limit.
        """
        if plan.retries:
            return self.config.model_copy(update={"max_reject_rate": 1.0})
        ours = {*map(without_query, plan.manifests)} & {*map(without_query, self.manifests)}
        return self.config if ours else self.config.model_copy(update={"max_reject_rate": None})

    def _count(self, progress: Progress, work: Work, max_reject_rate: float | None, shard: Finished) -> None:
        progress.add(shard)
        log_shard(shard, self.config.output)
        self.lineage.running(shard)
        check_rates(progress, work, shard, max_reject_rate)

    @staticmethod
    def _headline(plan: Plan, pending: int, device: str) -> str:
        resumed = f", {plan.num_shards - pending} of them done" if pending < plan.num_shards else ""
        return f"run {plan.plan}: {plan.rows:,} rows in {plan.num_shards:,} shards{resumed}, on {device}"

    # -- dry run

    def describe(self) -> dict[str, Any]:
        """Describe what a run would do, without writing to the output or fetching a model."""
        with temporary_folder() as folder:
            selection = self.read(folder)
            resources = visible_resources()
            # without a cluster, only Ray could detect GPUs on this machine: none are assumed
            on_gpus = self.config.device == "cuda" or (self.config.device == "auto" and bool(resources.gpus))
            size = shard_size(self.config, selection.rows, "cuda" if on_gpus else "cpu", resources)
            corpus = estimate.measure(
                selection.tables(),
                mode=self.config.mode,
                segmentation="vad" if self.config.window_s else self.config.segmentation,
                group_by=list(dict.fromkeys((*self.config.partition_by, "language"))),
                size=size,
            )
            needs = roles.needs_of(selection.tables(), self.config, self.prepared)
            reasons: dict[str, int] = {}
            for table in selection.rejects():
                for reason in table["reason"].to_pylist():
                    reasons[reason] = reasons.get(reason, 0) + 1
            models = roles.choose(self.config, needs.languages, needs_asr=needs.asr, prepared=self.prepared)
            on_cards, on_cores = (self.config.resolved_window(device, self.dataset) for device in ("cuda", "cpu"))
            windows = {"on_cards": on_cards, "on_cores": on_cores}
            rates = self.config.hourly_rate
            return {
                "manifests": list(map(without_query, self.manifests)),
                "rows_new": corpus.rows,
                "rows_held_by_earlier_runs": selection.held,
                "rows_rejected_while_planning": reasons,
                **({"rows_retried": selection.retried_rows} if self.config.retry_rejects else {}),
                **({"rows_erased": selection.erased} if selection.erased else {}),
                **({"rows_excluded": dict(selection.excluded)} if self.policy else {}),
                "rows_without_text": corpus.rows_without_text,
                "audio_hours_known": round(corpus.known_s / 3600, 4),
                "rows_without_duration": corpus.rows_without_duration,
                **estimate.estimate(corpus, self.config.mode, **windows),
                **({"price": estimate.prices(corpus, self.config.mode, rates, **windows)} if rates else {}),
                "models": {str(role): spec for role, spec in models.items()},
                "resources": {
                    "cpus": resources.cpus,
                    "gpus": resources.gpus if os.environ.get("RAY_ADDRESS") else "not looked for",
                    "memory_bytes": resources.memory_bytes,
                    "nodes": resources.nodes,
                },
                "shards": f"of up to {size.rows:,} rows or {size.audio_s:,.0f} s of audio",
            }


def _rows_done(plan: Plan, pending: int) -> int:
    """Estimate the finished rows for the progress line, assuming equal shards."""
    return round(plan.rows * (plan.num_shards - pending) / max(plan.num_shards, 1))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

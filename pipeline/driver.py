"""One run from the driver's side: read manifests, plan, run what is not done, publish.

The driver holds four bytes a row while planning, and counts; audio and rows stay on the workers and in the store.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import sizing
from pipeline.commit import committed_parts, publish
from pipeline.config import AUTO_LANGUAGE, JobConfig, primary_language, require_precision
from pipeline.dataset import (
    claim_dataset,
    compare_models,
    compare_settings,
    dataset_settings,
    settle_types,
    with_columns,
)
from pipeline.destination import unshared_warning
from pipeline.errors import ConfigError, NoWorkersError, RejectedRow, did_you_mean
from pipeline.failures import CANNOT_FINISH, give_up_runs, record_failure, stuck
from pipeline.finish import Finished
from pipeline.manifest.read import conform, expand, unify
from pipeline.models import slots
from pipeline.models.lock import Prepared
from pipeline.models.pinning import Pinning, refusal_first
from pipeline.plan import Plan, held_keys, load_plans, tiny_shards_warning, write_plan
from pipeline.pools import Resources, choose_device, shard_size, size_pools
from pipeline.progress import Progress
from pipeline.rates import check_rates
from pipeline.redaction import without_query
from pipeline.renewed import renew
from pipeline.roots import AudioRoots
from pipeline.rowchecks import check_language, check_partition_value
from pipeline.schema import SCHEMA_VERSION, passthrough_name, rename_passthrough, schema_version
from pipeline.shardlog import log_shard
from pipeline.spool import Selection, Spool
from pipeline.stages import cluster, run_shards
from pipeline.storage import Store, open_store, require_conditional_writes
from pipeline.survey import pending_shards, survey
from pipeline.temporary import temporary_folder
from pipeline.work import Work, audio_roots

_COMPUTE_TYPE = {"cpu": "float32", "cuda": "float16"}


@dataclass
class Driver:
    """One run of `config`. `out` is what the person who started it sees; it must not be file descriptor 2 itself."""

    config: JobConfig
    out: TextIO
    store: Store = field(init=False)
    prepared: Prepared | None = field(init=False)
    manifests: list[str] = field(init=False)
    plans: list[Plan] = field(init=False)
    undrawn: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.prepared = slots.prepared_models(self.config)
        self.manifests = expand(self.config.manifest, output=self.config.output)
        self.store = open_store(self.config.output)
        self.plans = load_plans(self.store)
        self._quick_refusal()

    def _quick_refusal(self) -> None:
        """Refuse a dataset of other settings before manifests are read; `auto` takes what the dataset has."""
        there = dataset_settings(self.store)
        if there is not None:
            compare_settings(there, self._settings(there, "cpu"), what="settings")

    def _settings(self, there: dict[str, Any] | None, device: str) -> dict[str, Any]:
        config = self.config
        precision = (there or {}).get("precision", "fp32") if config.precision == "auto" else config.precision
        require_precision(precision, mode=config.mode, device=device)
        compute_type = config.asr_compute_type
        if compute_type == "auto":
            compute_type = (there or {}).get("asr_compute_type", _COMPUTE_TYPE[device])
        version = SCHEMA_VERSION if there is None else schema_version(there)
        return config.settings(precision=precision, asr_compute_type=compute_type, version=version)

    # -- reading

    def read(self, folder: Path) -> Selection:
        """Read the manifests and find what is new."""
        spool = Spool(folder)
        roots = AudioRoots.parse(self.config.audio_root, self.manifests)
        known = set(slots.known_languages(self.config, self.prepared))
        there = dataset_settings(self.store)
        version = SCHEMA_VERSION if there is None else schema_version(there)
        spool.read(
            self.manifests,
            lambda rows: self._check(rename_passthrough(rows, version), roots, known),
            audio_optional=self.config.mode == "text",
        )
        return self._select(spool)

    def _select(self, spool: Spool) -> Selection:
        """What no plan holds yet, with the columns that the plans there are have settled."""
        spool.extra = settle_types(spool.found, self.plans)
        if spool.rows:
            self._check_partition_columns(spool.extra)
        else:  # what is only rejected, or nothing, is in no folder
            spool.extra = with_columns(spool.extra, self.config.partition_by, self.plans)
        return spool.select(*held_keys(self.store, self.plans))

    def _check(self, rows: pa.Table, roots: AudioRoots, known: set[str]) -> tuple[pa.Table, dict[int, RejectedRow]]:
        """Settle the language of each row and refuse rows that may not be opened or that no model speaks."""
        language = self.config.language
        if language == AUTO_LANGUAGE:
            languages = rows["language"]
        elif language is not None:
            languages = pa.array([language] * rows.num_rows, pa.string())
        else:
            languages = pc.fill_null(rows["language"], "en")
        rows = rows.set_column(rows.schema.get_field_index("language"), rows.schema.field("language"), languages)
        refused: dict[int, RejectedRow] = {}
        columns = [name for name in rows.schema.names if name.lower() in map(str.lower, self.config.partition_by)]
        looked_at = rows.select(list(dict.fromkeys(["audio", "language", *columns])))
        looked_at = conform(looked_at, unify([looked_at.schema]))
        for row, record in enumerate(looked_at.select(["audio", "language"]).to_pylist()):
            try:
                if record["audio"] is not None:
                    roots.check(record["audio"])
                check_language(record["language"], known)
                check_partition_value(
                    {name: looked_at[name][row] for name in looked_at.column_names if name in columns}
                )
            except RejectedRow as rejected:
                refused[row] = rejected
        return rows, refused

    def _check_partition_columns(self, extra: pa.Schema) -> None:
        for column in self.config.partition_by:
            if column == "language":
                if self.config.language == AUTO_LANGUAGE:
                    raise ConfigError("--partition-by language: a detected language is a model's output")
                continue
            if column not in extra.names:
                renamed = passthrough_name(column, SCHEMA_VERSION)
                hint = f"; the manifest's {column!r} is written as {renamed!r}" if renamed in extra.names else ""
                hint = hint or did_you_mean(column, [*extra.names, "language"])
                raise ConfigError(f"--partition-by {column}: no manifest has this column{hint}")
            if pa.types.is_nested(extra.field(column).type):
                raise ConfigError(f"--partition-by {column}: a {extra.field(column).type} column cannot name folders")

    # -- running

    def run(self) -> list[dict[str, Any]]:
        """Plan what is new, finish every unfinished plan, publish. Returns: their reports; none when nothing was new."""
        with temporary_folder() as folder:
            selection = self.read(folder)
            give_up_runs(self.store, self.plans, self.config.give_up, self.out)
            states = survey(self.store, self.plans, self.out)
            self.undrawn = [state.plan.plan for state in states if state.whole and not state.drawn]
            unfinished = [state.plan for state in states if not state.whole]
            with self._start_pinning(selection) as pinning, ExitStack() as stack:
                if not selection and not unfinished:
                    self._pinned(pinning, selection)
                    return []
                with refusal_first(partial(self._pinned, pinning, selection)):
                    resources = stack.enter_context(cluster(self.out))
                models = self._pinned(pinning, selection)
                require_conditional_writes(self.store)
                if warning := unshared_warning(self.config.output, resources.nodes):
                    print(f"warning: {warning}", file=self.out)
                planned = self._plan(selection, resources, *models) if selection else []
                return self._finish_all(planned, unfinished, selection.spool, resources)

    def _finish_all(
        self, planned: list[Plan], unfinished: list[Plan], spool: Spool, resources: Resources
    ) -> list[dict[str, Any]]:
        """Finish every plan, the new ones first, so that nothing in an old one can hold them up.

        Raises: StuckPlansError after all others when one cannot be finished.
        """
        done: dict[str, dict[str, Any]] = {}
        failures = []
        for plan in [*planned, *unfinished]:
            try:
                done[plan.plan] = self._finish(plan, resources, None if plan in planned else spool)
            except CANNOT_FINISH as error:
                failures.append(record_failure(self.store, plan, error))
                if isinstance(error, NoWorkersError):
                    break
        reports = [done[name] for name in sorted(done)]
        if failures:
            raise stuck(failures, reports)
        return reports

    def _start_pinning(self, selection: Selection) -> AbstractContextManager[Pinning | None]:
        """Have the models of what is new, and of earlier plans, resolved and checked; None when there are none."""
        languages = {slot.partition("/")[2] for plan in self.plans for slot in plan.models}
        asr = self._needs_asr(selection) or any(slots.needs_asr(plan) for plan in self.plans)
        chosen = {
            **slots.choose_known(self.config, languages, needs_asr=asr, prepared=self.prepared),
            **slots.choose(self.config, self._languages(selection), needs_asr=asr, prepared=self.prepared),
        }
        return Pinning(chosen, self.config.mode, self.prepared) if chosen else nullcontext()

    def _pinned(self, pinning: Pinning | None, selection: Selection) -> tuple[dict[str, Any], dict[str, int]]:
        """The models of what is new, held against those of earlier plans, and the widths of the embeddings kept."""
        if pinning is None:
            return {}, {}
        pinned, widths = pinning.result()
        compare_models(self.plans, pinned)
        slots.require_calibration(pinned, self._settings(dataset_settings(self.store), "cpu"))
        languages, asr = self._languages(selection), self._needs_asr(selection)
        fresh = slots.choose(self.config, languages, needs_asr=asr, prepared=self.prepared)
        return {slot: pinned[slot] for slot in fresh}, self._kept(widths)

    def _kept(self, widths: dict[str, int]) -> dict[str, int]:
        return {name: width for name, width in widths.items() if name in self.config.embeddings}

    def _languages(self, selection: Selection) -> set[str]:
        languages: set[str] = set()
        for table in selection.tables():
            for tag in table["language"].unique().to_pylist():
                if tag is None:
                    languages.update(slots.detectable_languages(self.config, self.prepared))
                else:
                    languages.add(primary_language(tag))
        return languages

    def _needs_asr(self, selection: Selection) -> bool:
        wants_text = self.config.mode != "audio"
        return any(
            table["language"].null_count
            or (wants_text and (table["text"].null_count or self.config.segmentation == "vad"))
            for table in selection.tables()
        )

    def _plan(
        self, selection: Selection, resources: Resources, pinned: dict[str, Any], widths: dict[str, int]
    ) -> list[Plan]:
        """Write the new plan; after losing a race for its number, drop what the winner holds and try the next."""
        device = choose_device(self.config, resources)
        size = shard_size(self.config, selection.rows, device, resources)
        settings = self._settings(dataset_settings(self.store), device)
        claim_dataset(self.store, settings)
        others: list[Plan] = []
        while selection:
            plan = write_plan(
                self.store,
                len(self.plans) + 1,
                selection,
                settings=settings,
                models=pinned,
                embedding_widths=widths,
                manifests=list(map(without_query, self.manifests)),
                size=size,
                needs_text=self.config.mode != "audio",
                audio_roots=AudioRoots.parse(self.config.audio_root, self.manifests).absolute(),
            )
            if plan is not None:
                if warning := tiny_shards_warning(plan):
                    print(f"warning: {warning}", file=self.out)
                return [*others, plan]
            others += load_plans(self.store)[len(self.plans) :]
            self.plans = load_plans(self.store)
            compare_models(self.plans, pinned)
            selection = self._select(selection.spool)
        return others

    def _finish(self, plan: Plan, resources: Resources, spool: Spool | None) -> dict[str, Any]:
        """Run the shards of one plan that have no part, then publish it.

        Args:
            spool: the manifest given now, for a plan that was made from an earlier one.
        """
        started, started_at = time.monotonic(), _now()
        pending = pending_shards(self.store, plan)
        if spool is not None:
            pending = renew(self.store, plan, pending, spool)
        random.shuffle(pending)  # another run at the same plan then works on other shards, and each skips what is done
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
            "settings": plan.settings,
            "models": plan.models,
            "config_hash": plan.config_hash,
            "versions": slots.versions(),
            "resources": asdict(resources),
            **({"page": False} if self.config.no_page else {}),
            **record,
        }
        return publish(self.store, plan, committed_parts(self.store, [plan])[plan.plan], report)

    def _config_for(self, plan: Plan) -> JobConfig:
        """`--max-reject-rate` is for the manifests it was given with: no other plan loses rows by it."""
        ours = {*map(without_query, plan.manifests)} & {*map(without_query, self.manifests)}
        return self.config if ours else self.config.model_copy(update={"max_reject_rate": None})

    def _count(self, progress: Progress, work: Work, max_reject_rate: float | None, shard: Finished) -> None:
        progress.add(shard)
        log_shard(shard, self.config.output)
        check_rates(progress, work, shard, max_reject_rate)

    @staticmethod
    def _headline(plan: Plan, pending: int, device: str) -> str:
        resumed = f", {plan.num_shards - pending} of them done" if pending < plan.num_shards else ""
        return f"run {plan.plan}: {plan.rows:,} rows in {plan.num_shards:,} shards{resumed}, on {device}"

    # -- looking only

    def describe(self) -> dict[str, Any]:
        """What a run would do; nothing is written below the output, and no model is fetched."""
        with temporary_folder() as folder:
            selection = self.read(folder)
            resources = _visible_resources()
            # not known before Ray is asked on this machine: then as if there were no GPU
            on_gpus = self.config.device == "cuda" or (self.config.device == "auto" and bool(resources.gpus))
            size = shard_size(self.config, selection.rows, "cuda" if on_gpus else "cpu", resources)
            corpus = sizing.measure(
                selection.tables(),
                mode=self.config.mode,
                segmentation=self.config.segmentation,
                group_by=list(dict.fromkeys((*self.config.partition_by, "language"))),
                size=size,
            )
            languages = self._languages(selection)
            reasons: dict[str, int] = {}
            for table in selection.rejects():
                for reason in table["reason"].to_pylist():
                    reasons[reason] = reasons.get(reason, 0) + 1
            return {
                "manifests": list(map(without_query, self.manifests)),
                "rows_new": corpus.rows,
                "rows_held_by_earlier_runs": selection.held,
                "rows_rejected_while_planning": reasons,
                "rows_without_text": corpus.rows_without_text,
                "audio_hours_known": round(corpus.known_s / 3600, 4),
                "rows_without_duration": corpus.rows_without_duration,
                **sizing.estimate(corpus, self.config.mode),
                "models": slots.choose(
                    self.config, languages, needs_asr=self._needs_asr(selection), prepared=self.prepared
                ),
                "resources": {
                    "cpus": resources.cpus,
                    "gpus": resources.gpus if os.environ.get("RAY_ADDRESS") else "not looked for",
                    "memory_bytes": resources.memory_bytes,
                    "nodes": resources.nodes,
                },
                "shards": f"of up to {size.rows:,} rows or {size.audio_s:,.0f} s of audio",
            }


def _rows_done(plan: Plan, pending: int) -> int:
    """An estimate for the progress line: rows are spread evenly over shards."""
    return round(plan.rows * (plan.num_shards - pending) / max(plan.num_shards, 1))


def _visible_resources() -> Resources:
    """The cluster's, or this machine's without its GPUs, which Ray alone finds."""
    if os.environ.get("RAY_ADDRESS"):
        with cluster() as resources:
            return resources
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    return Resources(cpus=cpus, gpus=0, memory_bytes=memory, nodes=1, node_cpus=cpus)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

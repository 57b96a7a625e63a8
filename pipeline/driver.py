"""One run from the driver's side: read manifests, plan, run what is not done, publish.

The driver holds four bytes a row while planning, and counts; audio and rows stay on the workers and in the store.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import sizing
from pipeline.commit import NULL_PARTITION, committed_parts, is_published, partition_folder, publish
from pipeline.config import AUTO_LANGUAGE, JobConfig, primary_language, require_precision
from pipeline.dataset import (
    claim_dataset,
    compare_models,
    compare_settings,
    dataset_settings,
    settle_types,
    with_columns,
)
from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage, did_you_mean
from pipeline.finish import MAX_DENIED, Finished
from pipeline.manifest.read import conform, expand, unify
from pipeline.models import slots
from pipeline.models.lock import Prepared
from pipeline.models.pinning import Pinning
from pipeline.plan import Plan, ShardSize, held_keys, load_plans, tiny_shards_warning, write_plan
from pipeline.pools import Resources, choose_device, size_pools
from pipeline.progress import Progress
from pipeline.redaction import without_query
from pipeline.roots import AudioRoots
from pipeline.schema import passthrough_name
from pipeline.shardlog import log_shard
from pipeline.spool import Selection, Spool
from pipeline.stages import cluster, run_shards
from pipeline.storage import Store, open_store, require_conditional_writes
from pipeline.work import Work

_CPU_SHARD = ShardSize(rows=64, audio_s=600.0)
_GPU_SHARD = ShardSize(rows=1024, audio_s=3600.0)
_SMALLEST_SHARD_ROWS = 8
_SHARDS_PER_WORKER = 4
_LONGEST_PARTITION_BYTES = 200
"""Of one `column=value` folder name; file systems allow 255."""
_RATE_ROWS = 100
"""Rows before a rate of rejects means something."""
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
        return config.settings(precision=precision, asr_compute_type=compute_type)

    # -- reading

    def read(self, folder: Path) -> Selection:
        """Read the manifests and find what is new."""
        spool = Spool(folder)
        roots = AudioRoots.parse(self.config.audio_root, self.manifests)
        known = set(slots.known_languages(self.config, self.prepared))
        spool.read(
            self.manifests, lambda rows: self._check(rows, roots, known), audio_optional=self.config.mode == "text"
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
        for row, record in enumerate(conform(looked_at, unify([looked_at.schema])).to_pylist()):
            try:
                if record["audio"] is not None:
                    roots.check(record["audio"])
                _check_language(record["language"], known)
                _check_partition_value(columns, record)
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
                renamed = passthrough_name(column)
                hint = f"; the manifest's {column!r} is written as {renamed!r}" if renamed in extra.names else ""
                hint = hint or did_you_mean(column, [*extra.names, "language"])
                raise ConfigError(f"--partition-by {column}: no manifest has this column{hint}")
            if pa.types.is_nested(extra.field(column).type):
                raise ConfigError(f"--partition-by {column}: a {extra.field(column).type} column cannot name folders")

    # -- running

    def run(self) -> list[dict[str, Any]]:
        """Plan what is new, finish every unfinished plan, publish. Returns: their reports; none when nothing was new."""
        with tempfile.TemporaryDirectory(prefix="speech-emotion-") as folder:
            selection = self.read(Path(folder))
            unfinished = [plan for plan in self.plans if not is_published(self.store, plan)]
            with self._start_pinning(selection) as pinning:
                if not selection and not unfinished:
                    self._pinned(pinning, selection)
                    return []
                with cluster(self.out) as resources:
                    models = self._pinned(pinning, selection)
                    require_conditional_writes(self.store)
                    if selection:
                        unfinished.extend(self._plan(selection, resources, *models))
                    return [self._finish(plan, resources) for plan in unfinished]

    def _start_pinning(self, selection: Selection) -> AbstractContextManager[Pinning | None]:
        """Have the models of what is new, and of earlier plans, resolved and checked; None when there are none."""
        languages = self._languages(selection) | {slot.partition("/")[2] for plan in self.plans for slot in plan.models}
        asr = self._needs_asr(selection) or any(slots.needs_asr(plan) for plan in self.plans)
        chosen = slots.choose(self.config, languages, needs_asr=asr, prepared=self.prepared)
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
                languages |= (
                    set(slots.known_languages(self.config, self.prepared)) if tag is None else {primary_language(tag)}
                )
        return languages

    def _needs_asr(self, selection: Selection) -> bool:
        wants_text = self.config.mode != "audio"
        return any(
            table["language"].null_count
            or (wants_text and (table["text"].null_count or self.config.segmentation == "vad"))
            for table in selection.tables()
        )

    def _shard_size(self, rows: int, device: str, resources: Resources) -> ShardSize:
        """Usual shards, or smaller ones when a small corpus would leave workers idle."""
        usual, workers = (_GPU_SHARD, resources.gpus) if device == "cuda" else (_CPU_SHARD, resources.cpus)
        spread = max(_SMALLEST_SHARD_ROWS, math.ceil(rows / (_SHARDS_PER_WORKER * max(workers, 1.0))))
        return ShardSize(self.config.shard_rows or min(usual.rows, spread), self.config.shard_audio_s or usual.audio_s)

    def _plan(
        self, selection: Selection, resources: Resources, pinned: dict[str, Any], widths: dict[str, int]
    ) -> list[Plan]:
        """Write the new plan; after losing a race for its number, drop what the winner holds and try the next."""
        device = choose_device(self.config, resources)
        size = self._shard_size(selection.rows, device, resources)
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

    def _finish(self, plan: Plan, resources: Resources) -> dict[str, Any]:
        """Run the shards of one plan that have no part, then publish it."""
        started, started_at = time.monotonic(), _now()
        parts = committed_parts(self.store, [plan])[plan.plan]
        pending = [shard for shard in plan.shards() if shard.number not in parts]
        random.shuffle(pending)  # another run at the same plan then works on other shards, and each skips what is done
        record: dict[str, Any] = {}
        if pending:
            pools = size_pools(self.config, resources, plan, len(pending))
            print(self._headline(plan, len(pending), pools.device), file=self.out)
            progress = Progress(rows=plan.rows, done=_rows_done(plan, len(pending)), out=self.out).start()
            work = Work(self.config.output, plan, AudioRoots.parse(self.config.audio_root, list(plan.manifests)))
            try:
                run_shards(work, pending, pools, self.config, partial(self._count, progress))
            finally:
                progress.close()
            record = {"pools": asdict(pools), "shards_lost_to_another_run": progress.lost}
            parts = committed_parts(self.store, [plan])[plan.plan]
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
            **record,
        }
        return publish(self.store, plan, parts, report)

    def _count(self, progress: Progress, shard: Finished) -> None:
        """Raises: JobError when too many rows of this run are rejected; what is committed stays."""
        progress.add(shard)
        log_shard(shard, self.config.output)
        limit, rows, rejected, why = self.config.max_reject_rate, progress.finished, progress.rejects, ""
        if limit is None:
            limit, rejected, why = MAX_DENIED, progress.denied, " for want of access"
        if rows >= _RATE_ROWS and rejected > limit * rows:
            raise JobError(
                f"{rejected:,} of {rows:,} rows are rejected{why}, more than --max-reject-rate {limit:g} allows; the last "
                f"shard's reasons: {', '.join(sorted(set(shard.rejects))) or 'none'}. What was done is kept"
            )

    @staticmethod
    def _headline(plan: Plan, pending: int, device: str) -> str:
        resumed = f", {plan.num_shards - pending} of them done" if pending < plan.num_shards else ""
        return f"run {plan.plan}: {plan.rows:,} rows in {plan.num_shards:,} shards{resumed}, on {device}"

    # -- looking only

    def describe(self) -> dict[str, Any]:
        """What a run would do; nothing is written below the output, and no model is fetched."""
        with tempfile.TemporaryDirectory(prefix="speech-emotion-") as folder:
            selection = self.read(Path(folder))
            resources = _visible_resources()
            # not known before Ray is asked on this machine: then as if there were no GPU
            on_gpus = self.config.device == "cuda" or (self.config.device == "auto" and bool(resources.gpus))
            size = self._shard_size(selection.rows, "cuda" if on_gpus else "cpu", resources)
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


def _check_language(tag: str | None, known: set[str]) -> None:
    if tag is not None and primary_language(tag) not in known:
        detail = (
            f"no emotion model is known for language {tag!r}; name one with --fusion-model {primary_language(tag)}=X"
        )
        raise RejectedRow(Reason.UNSUPPORTED_LANGUAGE, detail, Stage.MANIFEST)


def _check_partition_value(columns: Sequence[str], record: dict[str, object]) -> None:
    for column in columns:
        if record[column] == NULL_PARTITION:
            raise RejectedRow(
                Reason.BAD_FIELD,
                f"column {column!r} holds {NULL_PARTITION}, which readers take for null",
                Stage.MANIFEST,
            )
        if len(partition_folder([column], [record[column]]).encode()) > _LONGEST_PARTITION_BYTES:
            detail = f"column {column!r} names a folder of more than {_LONGEST_PARTITION_BYTES} bytes"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.MANIFEST)


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

"""Metrics of a run, published through Ray for Prometheus: `ray_speech_emotion_rows_total` and so on.

The driver publishes them once for each finished shard, so that retries are not counted twice and the sums equal those of
`report.json`. Every metric has the tags `run` and `output`.
docs/runbook.md explains each metric and how to react to it.

Ray's agent keeps a counter until its node ends, and forgets a gauge that is not set for two report intervals (20 s). The totals
are therefore gauges that the driver sets again and again: the series of a finished run disappear. Only `finished_runs` stays.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping
from typing import TypeVar

from ray.util.metrics import Counter, Gauge, Metric

from pipeline.dataset.plan import Plan
from pipeline.errors import Reason
from pipeline.redaction import without_query
from pipeline.shard.commit import Finished

M = TypeVar("M", bound=Metric)
PREFIX = "speech_emotion_"
_COMMON = ("run", "output")

TOTALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows": (
        "Manifest rows by status (annotated, rejected, elsewhere: committed by another run) and reason.",
        ("status", "reason"),
    ),
    "planned_rows": (
        "Rows of the plan that a driver took up, by state (planned, refused: rejects of the manifest).",
        ("state",),
    ),
    "rejects": ("Rejects in all: rows refused in the manifest, and rejected rows.", ()),
    "shards": ("Shards that came back, by outcome (committed, elsewhere).", ("outcome",)),
    "utterances": ("Utterances written.", ()),
    "audio_seconds": ("Seconds of audio written.", ()),
    "stage_seconds": ("Seconds of work by stage.", ("stage",)),
    "wait_seconds": ("Seconds that shards waited before a stage.", ("stage",)),
    "model_seconds": ("Seconds in which models had a batch.", ("stage",)),
    "batches": ("Batches put through models.", ("stage",)),
    "batch_utterances": ("Utterances in those batches.", ("stage",)),
    "batch_room": ("Utterances that would have fitted into those batches.", ("stage",)),
    "batch_real": ("Length of those utterances: seconds of audio, in mode text tokens.", ("stage",)),
    "batch_padded": ("The same after padding.", ("stage",)),
    "retries": (
        "What was done again, by stage and kind (store: a call; memory: a batch halved; process: it had died).",
        ("stage", "kind"),
    ),
}
"""Sums that only grow: description and tags by name, without the prefix and the suffix `_total`."""

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "finished_runs": ("Runs whose shards are all done: 0 or 1.", ()),
}
"""Counters that outlive their run, so that its end can be told from the end of its driver; Ray appends `_total`."""

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "actors": ("Model actors by stage and state (asked, alive, waiting).", ("stage", "state")),
    "last_commit_timestamp_seconds": ("Time of the last shard that this driver committed, in Unix seconds.", ()),
    "gpu_memory_bytes": ("Largest memory in use on a card after a shard, by stage.", ("stage",)),
}

_FIGURES = {
    "waited_s": "wait_seconds",
    "model_s": "model_seconds",
    "batches": "batches",
    "batched": "batch_utterances",
    "room": "batch_room",
    "real": "batch_real",
    "padded": "batch_padded",
}
_RETRIES = {"store_retries": "store", "halved": "memory", "restarts": "process"}


_AT_ZERO: tuple[tuple[str, dict[str, str]], ...] = (
    ("utterances", {}),
    ("audio_seconds", {}),
    ("rejects", {}),
    *(("planned_rows", {"state": state}) for state in ("planned", "refused")),
    *(("shards", {"outcome": outcome}) for outcome in ("committed", "elsewhere")),
    *(("rows", {"status": status, "reason": ""}) for status in ("annotated", "elsewhere")),
    *(("rows", {"status": "rejected", "reason": str(reason)}) for reason in Reason),
)
"""Totals, with their own tags, that are published from the start of a run; those of stages come with the first shard."""


class Metrics:
    """The metrics of one plan's run."""

    def __init__(self, output: str, plan: Plan) -> None:
        tags = {"run": plan.plan, "output": without_query(output)}
        totals = {f"{name}_total": metric for name, metric in TOTALS.items()}
        self._gauges = {
            name: _tagged(Gauge(PREFIX + name, *_with_tags(metric)), tags) for name, metric in (totals | GAUGES).items()
        }
        self._finished = _tagged(Counter(PREFIX + "finished_runs", *_with_tags(COUNTERS["finished_runs"])), tags)
        # Ray's `inc` refuses zero; without it an alert cannot tell a run that has not finished from one that never was
        self._finished._record(0.0)
        self._totals: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in TOTALS}
        self._gpu_bytes: dict[str, float] = {}
        self._committed_at: float | None = None
        for name, own in _AT_ZERO:
            self._totals[name][tuple(own.items())] = 0.0
        self._add("planned_rows", plan.rows, state="planned")
        self._add("planned_rows", plan.rejects, state="refused")
        self._add("rejects", plan.rejects)
        self._publish()

    def count(self, shard: Finished) -> None:
        """Publish one shard."""
        self._count(shard)
        self._publish()

    def finish(self) -> None:
        """Publish that all shards of the run are done."""
        self._publish()
        self._finished.inc()

    def _count(self, shard: Finished) -> None:
        self._add("shards", 1, outcome="committed" if shard.won else "elsewhere")
        for stage, seconds in shard.stage_s.items():
            self._add("stage_seconds", seconds, stage=stage)
        for stage, figures in shard.figures.items():
            self._count_figures(stage, figures)
        if not shard.won:
            self._add("rows", shard.rows, status="elsewhere", reason="")
            return
        self._committed_at = time.time()
        self._add("rejects", len(shard.rejects))
        self._add("rows", shard.rows - len(shard.rejects), status="annotated", reason="")
        for reason, rows in collections.Counter(shard.rejects).items():
            self._add("rows", rows, status="rejected", reason=reason)
        self._add("utterances", shard.utterances)
        self._add("audio_seconds", shard.audio_s)

    def actors(self, states: Mapping[str, Mapping[str, int]]) -> None:
        """Publish the number of actors by stage and state, and everything else again, since Ray forgets it."""
        self._publish()
        for stage, counts in states.items():
            for state, number in counts.items():
                self._set("actors", number, stage=stage, state=state)

    def _count_figures(self, stage: str, figures: Mapping[str, float]) -> None:
        for figure, metric in _FIGURES.items():
            self._add(metric, figures.get(figure, 0.0), stage=stage)
        for figure, kind in _RETRIES.items():
            self._add("retries", figures.get(figure, 0.0), stage=stage, kind=kind)
        if "gpu_bytes" in figures:
            self._gpu_bytes[stage] = max(self._gpu_bytes.get(stage, 0.0), figures["gpu_bytes"])

    def _add(self, name: str, value: float, **tags: str) -> None:
        key = tuple(tags.items())
        self._totals[name][key] = self._totals[name].get(key, 0.0) + value

    def _publish(self) -> None:
        # the thread that watches the run publishes too
        for name, series in self._totals.items():
            for own, value in list(series.items()):
                self._set(f"{name}_total", value, **dict(own))
        for stage, gpu_bytes in list(self._gpu_bytes.items()):
            self._set("gpu_memory_bytes", gpu_bytes, stage=stage)
        if self._committed_at is not None:
            self._set("last_commit_timestamp_seconds", self._committed_at)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, tags=tags)


def _with_tags(metric: tuple[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    about, tags = metric
    return about, (*_COMMON, *tags)


def _tagged(metric: M, tags: Mapping[str, str]) -> M:
    metric.set_default_tags(dict(tags))
    return metric

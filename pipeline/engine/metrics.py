"""Metrics of a run, published through Ray for Prometheus: `ray_speech_emotion_rows_total` and so on.

The driver publishes them once for each finished shard, so that retries are not counted twice and the sums equal those of
`report.json`. Every metric has the tags `run` and `output`.
docs/runbook.md explains each metric and how to react to it.
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

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows": (
        "Manifest rows by status (annotated, rejected, elsewhere: committed by another run) and reason.",
        ("status", "reason"),
    ),
    "planned_rows": (
        "Rows of the plan that a driver took up, by state (planned, refused: rejects of the manifest).",
        ("state",),
    ),
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
"""Description and tags by name, without the prefix and without `_total`, which Ray appends."""

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
    *(("planned_rows", {"state": state}) for state in ("planned", "refused")),
    *(("shards", {"outcome": outcome}) for outcome in ("committed", "elsewhere")),
    *(("rows", {"status": status, "reason": ""}) for status in ("annotated", "elsewhere")),
    *(("rows", {"status": "rejected", "reason": str(reason)}) for reason in Reason),
)
"""Counters, with their own tags, that are published from the start of a run; those of stages come with the first shard."""


class Metrics:
    """The metrics of one plan's run."""

    def __init__(self, output: str, plan: Plan) -> None:
        tags = {"run": plan.plan, "output": without_query(output)}
        self._counters = {
            name: _tagged(Counter(PREFIX + name, *_with_tags(metric)), tags) for name, metric in COUNTERS.items()
        }
        self._gauges = {
            name: _tagged(Gauge(PREFIX + name, *_with_tags(metric)), tags) for name, metric in GAUGES.items()
        }
        self._gpu_bytes: dict[str, float] = {}
        self._committed_at: float | None = None
        for name, own in _AT_ZERO:
            # Ray's `inc` refuses zero; without it a rate misses the first shard, and an alert cannot tell nothing from no job
            self._counters[name]._record(0.0, tags=own)
        self._add("planned_rows", plan.rows, state="planned")
        self._add("planned_rows", plan.rejects, state="refused")

    def count(self, shard: Finished) -> None:
        """Publish one shard."""
        self._add("shards", 1, outcome="committed" if shard.won else "elsewhere")
        for stage, seconds in shard.stage_s.items():
            self._add("stage_seconds", seconds, stage=stage)
        for stage, figures in shard.figures.items():
            self._count_figures(stage, figures)
        if not shard.won:
            self._add("rows", shard.rows, status="elsewhere", reason="")
            return
        self._committed_at = time.time()
        self._set("last_commit_timestamp_seconds", self._committed_at)
        self._add("rows", shard.rows - len(shard.rejects), status="annotated", reason="")
        for reason, rows in collections.Counter(shard.rejects).items():
            self._add("rows", rows, status="rejected", reason=reason)
        self._add("utterances", shard.utterances)
        self._add("audio_seconds", shard.audio_s)

    def actors(self, states: Mapping[str, Mapping[str, int]]) -> None:
        """Publish the number of actors by stage and state, and the other gauges again, since Ray forgets them."""
        if self._committed_at is not None:
            self._set("last_commit_timestamp_seconds", self._committed_at)
        for stage, gpu_bytes in self._gpu_bytes.items():
            self._set("gpu_memory_bytes", gpu_bytes, stage=stage)
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
            self._set("gpu_memory_bytes", self._gpu_bytes[stage], stage=stage)

    def _add(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray refuses increments of zero
            self._counters[name].inc(value, tags=tags)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, tags=tags)


def _with_tags(metric: tuple[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    about, tags = metric
    return about, (*_COMMON, *tags)


def _tagged(metric: M, tags: Mapping[str, str]) -> M:
    metric.set_default_tags(dict(tags))
    return metric

"""OpenLineage events of a job: START, RUNNING, and COMPLETE, FAIL or ABORT, through the openlineage-python client.

Events are sent if the environment configures the client (`OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG`, `OPENLINEAGE__...`). A
thread sends them: a receiver that is slow or down delays a job by at most `CLOSE_S`, and never fails it. See
docs/lineage.md.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, TextIO

import pyarrow as pa

from pipeline.config import JobConfig
from pipeline.dataset.compatibility import read_columns
from pipeline.dataset.plan import Plan
from pipeline.engine.lineage_events import Counts, JobEvent, built, new_client
from pipeline.errors import StuckPlansError
from pipeline.layout import REJECTS, UTTERANCES
from pipeline.redaction import redacted, without_query
from pipeline.shard.commit import Finished
from pipeline.storage.store import Store

CLOSE_S = 10.0
"""Maximum time in seconds that the end of a job waits for events that are not sent yet."""
EVERY_S = 60.0
"""Minimum time in seconds between two RUNNING events."""
NAMESPACE = "OPENLINEAGE_NAMESPACE"
PARENT = "OPENLINEAGE_PARENT_ID"
"""Run that started this one, as namespace/name/run id."""
_CONFIGURED = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_NESTED = "OPENLINEAGE__"
_UNSENT = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError)
"""Exceptions of the client: connections and files, wrong configurations, transports that are not installed."""


def is_configured() -> bool:
    """Return whether the environment configures a receiver of events."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    return any(os.environ.get(name) for name in _CONFIGURED) or any(name.startswith(_NESTED) for name in os.environ)


class _Sender:
    """A thread that sends events one after the other, and says once if it cannot."""

    def __init__(self, out: TextIO) -> None:
        self._events: queue.SimpleQueue[JobEvent | None] = queue.SimpleQueue()
        self._out = out
        self._has_failed = False
        self._thread = threading.Thread(target=self._send_all, name="openlineage", daemon=True)
        self._thread.start()

    def put(self, event: JobEvent) -> None:
        self._events.put(event)

    @property
    def is_behind(self) -> bool:
        return not self._events.empty()

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"OpenLineage: no answer within {CLOSE_S:.0f} s; the last events are not sent")

    def _send_all(self) -> None:
        client = None
        while (event := self._events.get()) is not None:
            try:
                client = client or new_client()
                client.emit(built(event))
            except _UNSENT as error:
                self._warn(f"OpenLineage: an event was not sent: {type(error).__name__}: {str(error)[:200]}")

    def _warn(self, sentence: str) -> None:
        if not self._has_failed:
            print(f"warning: {redacted(sentence)}", file=self._out)
        self._has_failed = True


@dataclass
class Lineage:
    """The events of one job: a context that sends START, and in the end COMPLETE, FAIL or ABORT.

    Nothing is sent if no receiver is configured.

    Attributes:
        name: name of the job; its namespace is `OPENLINEAGE_NAMESPACE`.
        inputs, outputs: URIs or paths of what it reads and writes.
        out: stream for warnings.
        counts, schema: of the last event; set by `running` and `finished`.
        failure: sentence about a failure that is no exception; the last event is then FAIL.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    out: TextIO
    counts: Counts = field(default_factory=Counts)
    schema: pa.Schema | None = None
    failure: str = ""
    run_id: str = field(init=False, default_factory=lambda: str(uuid.uuid4()))
    _sender: _Sender | None = field(init=False, default=None)
    _sent_s: float = field(init=False, default=0.0)

    def __enter__(self) -> Lineage:
        if is_configured():
            if find_spec("openlineage") is None:
                print(
                    "warning: OpenLineage is configured, but not installed: pip install -e '.[lineage]'", file=self.out
                )
            else:
                self._sender = _Sender(self.out)
        self._put("START")
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, StuckPlansError) and self._sender is not None:
            self.counts = Counts.of(error.reports)
        if error is None:
            self._put("FAIL" if self.failure else "COMPLETE", self.failure)
        elif isinstance(error, KeyboardInterrupt):
            self._put("ABORT")
        else:
            self._put("FAIL", f"{type(error).__name__}: {str(error).strip()[:500]}")
        if self._sender is not None:
            self._sender.close()

    def running(self, shard: Finished) -> None:
        """Count a finished shard, and send RUNNING if the last event was a while ago and the receiver keeps up."""
        self.counts = self.counts.with_shard(shard)
        if self._sender is None or self._sender.is_behind or time.monotonic() - self._sent_s < EVERY_S:
            return
        self._put("RUNNING")

    def finished(self, reports: Sequence[Mapping[str, Any]], plans: Sequence[Plan], store: Store) -> None:
        """Take the counts of the published runs, and the schema of their utterances, for the last event."""
        if self._sender is None:
            return
        self.counts = Counts.of(reports)
        published = tuple(plan for plan in plans if plan.plan in self.counts.runs)
        if published:
            from pipeline.dataset.reader import Rows  # imports pandas, which no job needs before its first line

            self.schema = Rows(store, published, (), {}, read_columns(plan.extra for plan in published)).schema()

    @contextmanager
    def as_parent(self) -> Iterator[None]:
        """Make this run the parent of jobs that start in this process."""
        before = os.environ.get(PARENT)
        os.environ[PARENT] = f"{namespace()}/{self.name}/{self.run_id}"
        try:
            yield
        finally:
            if before is None:
                del os.environ[PARENT]
            else:
                os.environ[PARENT] = before

    def _put(self, state: str, message: str = "") -> None:
        if self._sender is None:
            return
        self._sent_s = time.monotonic()
        self._sender.put(
            JobEvent(
                state=state,
                at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                namespace=namespace(),
                name=self.name,
                run_id=self.run_id,
                parent=os.environ.get(PARENT, ""),
                inputs=tuple(self.inputs),
                outputs=tuple(self.outputs),
                counts=replace(self.counts),
                schema=self.schema,
                message=redacted(message),
            )
        )


def namespace() -> str:
    """Return the namespace of the jobs."""
    return os.environ.get(NAMESPACE) or "speech-emotion-pipeline"


def lineage_of(config: JobConfig, out: TextIO) -> Lineage:
    """Return the events of `jobs.annotate`: manifests in, utterances and rejects out."""
    output = without_query(config.output).rstrip("/")
    inputs = list(map(without_query, config.manifest))
    return Lineage(f"annotate:{output}", inputs, [f"{output}/{UTTERANCES}", f"{output}/{REJECTS}"], out)

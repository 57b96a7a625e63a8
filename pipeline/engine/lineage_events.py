"""OpenLineage events from plain values. The client's classes are loaded by the first event."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.layout import REJECTS, UTTERANCES
from pipeline.redaction import without_query
from pipeline.shard.commit import Finished

_PROJECT = "speech-emotion-pipeline"


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a job's runs.

    Attributes:
        runs: numbers of the published runs.
        rows: manifest rows: annotated, rejected while planning, and rejected since.
        files: parts of the utterances.
    """

    runs: tuple[str, ...] = ()
    rows: int = 0
    annotated: int = 0
    rejected: int = 0
    rejects_by_reason: Mapping[str, int] = field(default_factory=dict)
    utterances: int = 0
    files: int = 0
    audio_hours: float = 0.0

    @classmethod
    def of(cls, reports: Sequence[Mapping[str, Any]]) -> Counts:
        """Add up the reports of runs."""
        reasons: Counter[str] = Counter()
        for report in reports:
            reasons.update(report.get("rejects_by_reason", {}))

        def total(name: str) -> Any:  # noqa: ANN401 - int or float
            return sum(report.get(name, 0) for report in reports)

        return cls(
            tuple(str(report["run_id"]) for report in reports),
            total("rows"),
            total("recordings_annotated"),
            total("rejected"),
            dict(sorted(reasons.items())),
            total("utterances"),
            total("parts"),
            round(float(total("audio_hours")), 6),
        )

    def with_shard(self, shard: Finished) -> Counts:
        """Return the counts with those of a shard that was committed."""
        return Counts(
            self.runs,
            self.rows + shard.rows,
            self.annotated + shard.rows - len(shard.rejects),
            self.rejected + len(shard.rejects),
            dict(sorted((Counter(self.rejects_by_reason) + Counter(shard.rejects)).items())),
            self.utterances + shard.utterances,
            self.files + 1,
            self.audio_hours + shard.audio_s / 3600,
        )


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event in plain values.

    Attributes:
        state: START, RUNNING, COMPLETE, FAIL or ABORT.
        at: time in UTC, ISO 8601.
        parent: namespace/name/run id of the run that started this one; empty without any.
        schema: columns of the utterances, if they are known.
        message: the error, without secrets; empty without any.
    """

    state: str
    at: str
    namespace: str
    name: str
    run_id: str
    parent: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    counts: Counts
    schema: pa.Schema | None
    message: str


def dataset_name(uri: str) -> tuple[str, str]:
    """Return the namespace and name of a dataset by OpenLineage's naming: `s3://bucket` and `key`, or `file` and a path."""
    shown = without_query(uri)
    scheme, mark, rest = shown.partition("://")
    if not mark or scheme == "file":
        return "file", str(Path(rest or shown).absolute())
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path or "/"


def new_client() -> Any:  # noqa: ANN401 - an OpenLineageClient
    """Return a client for the receiver that the environment configures. Raises: the errors of the client."""
    from openlineage.client import OpenLineageClient

    before = set(os.environ)
    client = OpenLineageClient()
    for name in set(os.environ) - before:  # copies of its settings and key, which child processes would inherit
        del os.environ[name]
    return client


def built(event: JobEvent) -> Any:  # noqa: ANN401 - a RunEvent
    """Build the client's event."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

    producer = f"urn:{_PROJECT}:{_version()}"
    return RunEvent(
        eventTime=event.at,
        eventType=RunState[event.state],
        run=Run(event.run_id, _run_facets(event, producer)),
        job=Job(event.namespace, event.name, _job_facets(producer)),
        inputs=[InputDataset(*dataset_name(uri)) for uri in event.inputs],
        outputs=[OutputDataset(*dataset_name(uri), **_output_facets(uri, event, producer)) for uri in event.outputs],
        producer=producer,
    )


def _run_facets(event: JobEvent, producer: str) -> dict[str, Any]:
    import attr
    from openlineage.client.event_v2 import Run
    from openlineage.client.facet_v2 import error_message_run, parent_run
    from openlineage.client.generated.base import RunFacet

    @attr.define
    class CountsRunFacet(RunFacet):
        runs: list[str]
        rows: int
        annotated: int
        rejected: int
        rejectsByReason: dict[str, int]  # noqa: N815 - as OpenLineage spells its fields
        utterances: int
        audioHours: float  # noqa: N815

    counts = event.counts
    numbers: dict[str, Any] = {
        "runs": [*counts.runs],
        "rows": counts.rows,
        "annotated": counts.annotated,
        "rejected": counts.rejected,
        "rejectsByReason": dict(counts.rejects_by_reason),
        "utterances": counts.utterances,
        "audioHours": round(counts.audio_hours, 6),
        "producer": producer,
    }
    facets: dict[str, Any] = {"speechEmotion_counts": CountsRunFacet(**numbers)}
    if event.message:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(event.message, "PYTHON", producer=producer)
    if event.parent:
        namespace, _, rest = event.parent.partition("/")
        name, _, run_id = rest.rpartition("/")
        facets["parent"] = parent_run.ParentRunFacet(
            parent_run.Run(Run(run_id).runId), parent_run.Job(namespace, name), producer=producer
        )
    return facets


def _job_facets(producer: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import job_type_job

    kind = job_type_job.JobTypeJobFacet("BATCH", _PROJECT, "JOB", producer=producer)
    return {"jobType": kind}


def _output_facets(uri: str, event: JobEvent, producer: str) -> dict[str, Any]:
    """Return the facets of one output: numbers of rows and files, and the schema of the utterances."""
    from openlineage.client.facet_v2 import output_statistics_output_dataset, schema_dataset

    name = uri.rpartition("/")[2]
    facets: dict[str, Any] = {}
    if name == UTTERANCES and event.schema is not None:
        fields = [
            schema_dataset.SchemaDatasetFacetFields(
                field.name, str(field.type), (field.metadata or {}).get(b"description", b"").decode() or None
            )
            for field in event.schema
        ]
        facets["facets"] = {"schema": schema_dataset.SchemaDatasetFacet(fields, producer=producer)}
    numbers = {
        UTTERANCES: {"rowCount": event.counts.utterances, "fileCount": event.counts.files},
        REJECTS: {"rowCount": event.counts.rejected},
    }
    if name in numbers and event.state != "START":
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            **numbers[name], producer=producer
        )
        facets["outputFacets"] = {"outputStatistics": statistics}
    return facets


def _version() -> str:
    try:
        return version(_PROJECT)
    except PackageNotFoundError:  # run from the source tree
        return "0"

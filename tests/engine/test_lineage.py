"""OpenLineage events: their facets, their transports, and receivers that are down. One job with Ray is in test_annotate_job."""

from __future__ import annotations

import io
import json
import os
import time

import pytest

from jobs.nightly import main as nightly
from pipeline.config import load_config
from pipeline.dataset.plan import load_plans
from pipeline.engine import lineage
from pipeline.engine.lineage import lineage_of
from pipeline.engine.lineage_events import dataset_name
from pipeline.errors import JobError, StuckPlansError
from pipeline.shard.commit import Finished
from tests.support.lineage_receiver import receiver
from tests.support.outputs import finished_output

SHARD = Finished("000001", 0, True, 5, 9, ("NOT_FOUND",), 3600.0, {})
REPORT = {
    "run_id": "000001", "rows": 13, "recordings_annotated": 10, "rejected": 3, "utterances": 12, "parts": 6, "audio_hours": 0.5,
    "rejects_by_reason": {"BAD_FIELD": 1, "NOT_FOUND": 2},
}  # fmt: skip
MANIFEST = "https://ada:hunter2@host/m.jsonl?X-Amz-Signature=canary"


@pytest.fixture(autouse=True)
def configuration(monkeypatch):
    """No receiver but the test's own."""
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)


@pytest.fixture
def listening(monkeypatch):
    with receiver() as received:
        monkeypatch.setenv("OPENLINEAGE_URL", received.url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "canary-key")
        yield received


def job(tmp_path, out=None):
    config = load_config(None, {"manifest": [MANIFEST], "output": str(tmp_path / "out")})
    return lineage_of(config, out or io.StringIO())


def states(events):
    return [event["eventType"] for event in events]


def test_a_job_sends_its_start_its_progress_and_its_end(tmp_path, listening, monkeypatch):
    """Fails if an event, a count, a reject reason or a column is missing, or the events are of several runs."""
    monkeypatch.setattr(lineage, "EVERY_S", 0.0)
    store = finished_output(str(tmp_path / "out"), tmp_path / "m")
    with job(tmp_path) as sending:
        while not listening.events:
            time.sleep(0.01)
        sending.running(SHARD)
        sending.finished([REPORT], load_plans(store), store)
    start, running, complete = listening.events
    assert states(listening.events) == ["START", "RUNNING", "COMPLETE"]
    assert len({event["run"]["runId"] for event in listening.events}) == 1
    assert start["job"] == {**complete["job"], "name": f"annotate:{tmp_path}/out"}
    counts = running["run"]["facets"]["speechEmotion_counts"]
    assert (counts["rows"], counts["annotated"], counts["rejectsByReason"]) == (5, 4, {"NOT_FOUND": 1})
    counts = complete["run"]["facets"]["speechEmotion_counts"]
    assert (counts["runs"], counts["rows"], counts["rejectsByReason"]) == (["000001"], 13, REPORT["rejects_by_reason"])
    utterances, rejects = complete["outputs"]
    assert (utterances["namespace"], utterances["name"]) == ("file", f"{tmp_path}/out/utterances")
    assert utterances["outputFacets"]["outputStatistics"]["rowCount"] == 12
    assert rejects["outputFacets"]["outputStatistics"]["rowCount"] == 3
    fields = {each["name"]: each for each in utterances["facets"]["schema"]["fields"]}
    assert fields["emotion"]["type"] == "string" and "vocabulary" in fields["emotion"]["description"]
    assert "take" in fields


def test_no_event_has_a_secret(tmp_path, listening):
    """Fails if a query string, a password of a URL, a key of the receiver or a path in an error reaches an event."""
    with pytest.raises(JobError), job(tmp_path):
        raise JobError(f"cannot read {MANIFEST}")
    assert states(listening.events) == ["START", "FAIL"]
    assert listening.events[0]["inputs"][0]["namespace"] == "https://host"
    error = listening.events[1]["run"]["facets"]["errorMessage"]["message"]
    assert error.startswith("JobError: cannot read https://host/m.jsonl")
    text = json.dumps(listening.events)
    assert "canary" not in text and "hunter2" not in text
    assert listening.authorizations == ["Bearer canary-key"] * 2
    assert not [name for name, value in os.environ.items() if "canary-key" in value and name != "OPENLINEAGE_API_KEY"]


def test_how_a_job_ended(tmp_path, listening):
    """Fails if an interruption is a failure, or the runs that a stuck job did finish are not counted."""
    with pytest.raises(KeyboardInterrupt), job(tmp_path):
        raise KeyboardInterrupt
    with pytest.raises(StuckPlansError), job(tmp_path):
        raise StuckPlansError("run 000002 cannot be finished", [REPORT])
    assert states(listening.events) == ["START", "ABORT", "START", "FAIL"]
    assert listening.events[-1]["run"]["facets"]["speechEmotion_counts"]["runs"] == ["000001"]


def test_events_go_to_a_file(tmp_path, monkeypatch):
    """Fails if the client's own configuration file is not used."""
    log, file = tmp_path / "events.jsonl", tmp_path / "openlineage.yml"
    file.write_text(f"transport: {{type: file, log_file_path: {log}, append: true}}\n")
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(file))
    with job(tmp_path):
        pass
    assert states(map(json.loads, log.read_text().splitlines())) == ["START", "COMPLETE"]


@pytest.mark.parametrize("fault", ["silent", "refused", "wrong"])
def test_a_receiver_that_is_down_costs_a_job_seconds_and_a_line(tmp_path, listening, monkeypatch, fault):
    """Fails if a receiver that does not answer, is not there or is not configured rightly fails a job or holds it up."""
    monkeypatch.setattr(lineage, "CLOSE_S", 0.5)
    if fault == "silent":
        listening.silent.set()
    monkeypatch.setenv(
        "OPENLINEAGE_URL", {"refused": "http://127.0.0.1:1", "wrong": "no-url"}.get(fault, listening.url)
    )
    out = io.StringIO()
    started = time.monotonic()
    with job(tmp_path, out) as sending:
        for _ in range(1000):
            sending.running(SHARD)
        in_job = time.monotonic() - started
    assert in_job < 3.0 and time.monotonic() - started < 6.0  # the client alone would try for 9 s, or without end
    (line,) = out.getvalue().splitlines()
    assert line.startswith("warning: OpenLineage: ") and "canary" not in line


def test_without_a_receiver_nothing_is_sent_or_loaded(tmp_path, monkeypatch):
    """Fails if a job without OpenLineage starts a thread, or one that lacks the package fails."""
    with job(tmp_path) as sending:
        assert sending._sender is None
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(lineage, "find_spec", lambda name: None)
    out = io.StringIO()
    with job(tmp_path, out) as sending:
        assert sending._sender is None
    assert "pip install -e '.[lineage]'" in out.getvalue()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b?c", ("s3://bucket", "a/b?c")),
        ("https://u:p@host:8080/m.jsonl?token=x", ("https://host:8080", "m.jsonl")),
        ("/data/m.jsonl", ("file", "/data/m.jsonl")),
        ("file:///data/m.jsonl", ("file", "/data/m.jsonl")),
        ("gs://bucket", ("gs://bucket", "/")),
    ],
)
def test_datasets_have_the_names_that_other_tools_give_them(uri, expected):
    """Fails if a dataset of another tool and ours are two nodes of the graph."""
    assert dataset_name(uri) == expected


def test_a_night_is_the_parent_of_its_job(tmp_path, listening, monkeypatch):
    """Fails if the steps of a night are not attached to it, a failed night looks complete, or the outer parent is lost."""
    outer = "018f9a00-0000-7000-8000-000000000001"
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"airflow/dag.task/{outer}")
    (tmp_path / "corpus").mkdir()
    seen = []

    def annotating(words):
        seen.append(os.environ["OPENLINEAGE_PARENT_ID"])
        return 1

    monkeypatch.setattr("jobs.nightly.annotate.main", annotating)
    monkeypatch.setattr("jobs.nightly.make_manifest.main", lambda words: 0)
    output = tmp_path / "out"
    assert (
        nightly([str(tmp_path / "corpus"), "--manifest", str(tmp_path / "m.jsonl"), "--", "--output", str(output)]) == 1
    )
    start, end = listening.of("nightly:")
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert end["run"]["facets"]["errorMessage"]["message"] == "jobs.annotate ended with status 1"
    assert seen == [f"speech-emotion-pipeline/nightly:{output}/{start['run']['runId']}"]
    assert end["run"]["facets"]["parent"]["run"]["runId"] == outer
    assert end["run"]["facets"]["parent"]["job"] == {
        **end["run"]["facets"]["parent"]["job"],
        "namespace": "airflow",
        "name": "dag.task",
    }
    assert os.environ["OPENLINEAGE_PARENT_ID"].endswith(outer)

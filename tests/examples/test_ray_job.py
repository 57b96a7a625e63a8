"""`examples/ray_job.py`, the DAG's operator and the asset, on a stand-in for Ray's client: no Ray starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from tests.support import orchestrating
from tests.support.orchestrating import FinalError, Interrupted, airflow_context, dagster_context

import ray_job  # isort: skip - from examples/, which orchestrating adds to the path

RUN = "airflow-speech-emotion-scheduled--2026-11-22"
COMMAND = ["python", "-m", "jobs.verify", "out"]
TEXT = "python -m jobs.verify out"


class Cluster:
    """Ray's client with some jobs. A job that is followed ends with the next of `codes`; None is a job that was stopped.

    Attributes:
        logs: what each connection to a log sends; None breaks the connection.
    """

    def __init__(self, codes: list[int | None], **jobs: str) -> None:
        self.codes, self.submitted, self.stopped = codes, list[str](), list[str]()
        self.jobs: dict[str, SimpleNamespace] = {}
        self.logs: list[list[str | None]] = []
        self.asked: dict[str, Any] = {}
        for name, status in jobs.items():
            self.add(name.replace("_", "-"), JobStatus(status), TEXT)

    def add(self, name: str, status: JobStatus, command: str) -> None:
        self.jobs[name] = SimpleNamespace(
            submission_id=name, status=status, entrypoint=command, driver_exit_code=None, message="", start_time=None
        )

    def list_jobs(self) -> list[SimpleNamespace]:
        return [*self.jobs.values()]

    def submit_job(self, *, entrypoint: str, submission_id: str, **asked: Any) -> None:
        if submission_id in self.jobs:
            raise RuntimeError("the name is taken")
        self.submitted.append(submission_id)
        self.asked = asked
        self.add(submission_id, JobStatus.RUNNING, entrypoint)

    def get_job_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(**vars(self.jobs[name]))

    def get_job_status(self, name: str) -> JobStatus:
        return self.jobs[name].status  # type: ignore[no-any-return]

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)
        self.jobs[name].status = JobStatus.STOPPED

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0) if self.logs else []:
            if text is None:
                raise RuntimeError("closed")
            yield text
        await asyncio.sleep(0)
        job = self.jobs[name]
        if not job.status.is_terminal():
            code = self.codes.pop(0)
            job.status = JobStatus.STOPPED if code is None else JobStatus.FAILED if code else JobStatus.SUCCEEDED
            job.driver_exit_code = code


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    def make(codes: list[int | None], **jobs: str) -> Cluster:
        client = Cluster(codes, **jobs)
        monkeypatch.setattr(ray_job, "JobSubmissionClient", lambda _: client)
        monkeypatch.setattr(ray_job, "_POLL_S", 0.0)
        monkeypatch.setenv("RAY_DASHBOARD", "http://head:8265")
        return client

    return make


def verify(**options: Any) -> ray_job.Ended:
    lines: list[str] = []
    return ray_job.run_command("http://head:8265", "r", COMMAND, **{"log": lines.append, **options})


@pytest.mark.parametrize(
    ("jobs", "after", "submitted"),
    [
        ({}, 0, ["r-1"]),
        ({"r_1": "RUNNING"}, 0, []), ({"r_1": "PENDING"}, 5, []), ({"r_1": "FAILED", "r_2": "RUNNING"}, 0, []),
        ({"r_1": "SUCCEEDED"}, 0, []), ({"r_1": "SUCCEEDED"}, 1, ["r-2"]), ({"r_1": "SUCCEEDED"}, 4, ["r-5"]),
        ({"r_1": "FAILED"}, 0, ["r-2"]), ({"r_1": "SUCCEEDED", "r_2": "STOPPED"}, 0, ["r-3"]),
        ({"r_2_1": "RUNNING", "rr_1": "RUNNING"}, 0, ["r-1"]),
    ],
)  # fmt: skip
def test_a_retry_joins_what_runs_or_succeeded_unseen(
    cluster: Callable[..., Cluster], jobs: dict[str, str], after: int, submitted: list[str]
) -> None:
    """Fails if a killed and retried task leaves two running jobs, repeats a job that succeeded meanwhile, returns a result from
    before the task was cleared, or joins the job of another run."""
    client = cluster([0], **jobs)
    assert verify(after=after).exit_status == 0
    assert client.submitted == submitted


def test_a_run_that_runs_another_command_is_not_joined(cluster: Callable[..., Cluster]) -> None:
    """Fails if a task reports the success of a command that is not its own."""
    client = cluster([0])
    client.add("r-1", JobStatus.RUNNING, "python -m jobs.erase out")
    with pytest.raises(ray_job.JobFailedError, match="r-1 runs another command"):
        verify()
    assert client.submitted == []


def test_two_processes_that_submit_at_once_share_one_job(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the loser of the race ends with an error, or submits a second job."""
    client = cluster([0])
    real = client.submit_job

    def lose(**asked: Any) -> None:
        client.add("r-1", JobStatus.RUNNING, TEXT)
        real(**asked)

    monkeypatch.setattr(client, "submit_job", lose)
    assert verify().submission == "r-1" and client.submitted == []


def test_the_source_tree_is_uploaded_where_it_is_named(cluster: Callable[..., Cluster]) -> None:
    """Fails if the cluster runs the code of its image, or gets the virtual environment too."""
    client = cluster([0, 0])
    verify(working_dir="tree")
    environment = client.asked["runtime_env"]
    assert environment["working_dir"] == "tree" and ".venv" in environment["excludes"]
    verify(after=1)
    assert client.asked["runtime_env"] is None


def test_each_line_of_the_log_is_passed_on_once(cluster: Callable[..., Cluster]) -> None:
    """Fails if a line is lost, cut or repeated when a connection breaks, or the whole log is fetched again at each look."""
    client, lines = cluster([0]), list[str]()
    client.logs = [
        ["one\ntw", None],
        ["one\ntwo\nthr", "ee\n", None],
        ["one\ntwo\nthree\nreport in s3://b/o/_runs/000", "007/report.json\nend"],
    ]
    ended = verify(log=lines.append)
    assert lines[1:] == ["one", "two", "three", "report in s3://b/o/_runs/000007/report.json", "end"]
    assert ended.reports == ["s3://b/o/_runs/000007/report.json"] and not client.logs


def test_a_job_that_takes_too_long_is_stopped(cluster: Callable[..., Cluster]) -> None:
    """Fails if the time of a retry begins anew, so that a job which a killed task left never ends."""
    client = cluster([0], r_1="RUNNING")
    client.jobs["r-1"].start_time = (time.time() - 100) * 1000
    with pytest.raises(ray_job.JobFailedError, match="r-1 did not end within 99 s") as failed:
        verify(timeout_s=99)
    assert client.stopped == ["r-1"] and failed.value.retry
    assert cluster([0], r_1="RUNNING") and verify(timeout_s=99).exit_status == 0


def night(operator: Any, **context: Any) -> Any:
    return operator.execute(airflow_context(corpus="c", output="o", **context))


@pytest.mark.parametrize(("code", "final"), [(2, True), (None, True), (1, False), (-9, False), (127, True), (3, True)])
def test_only_what_a_retry_can_help_is_retried(cluster: Callable[..., Cluster], code: int | None, final: bool) -> None:
    """Fails if a wrong option costs three retries, or a killed driver none, in Airflow or in Dagster."""
    names, (operator, _) = orchestrating.load_assets(), orchestrating.load_dag()
    cluster([code])
    with pytest.raises(FinalError if final else ray_job.JobFailedError, match=f"{RUN}-1 ended with status"):
        night(operator)
    cluster([code])
    resource = names["Cluster"](dashboard="d", corpus="c", output="o")
    with pytest.raises(orchestrating.Failure) as failed:
        names["utterances"](dagster_context("run"), resource)
    assert failed.value.allow_retries == (not final)


def test_the_tries_of_a_task_share_a_run_until_a_person_clears_it(cluster: Callable[..., Cluster]) -> None:
    """Fails if the second try starts a second job, or a cleared task returns the result of the night before the clearing."""
    operator, _ = orchestrating.load_dag()
    client = cluster([1, 0, 0])
    with pytest.raises(ray_job.JobFailedError):
        night(operator)
    night(operator, tries=2)
    night(operator, tries=3)
    assert client.submitted == [f"{RUN}-1", f"{RUN}-2"]
    night(operator, tries=4, max_tries=3 + 3)
    assert client.submitted[2:] == [f"{RUN}-4"]
    assert "--manifest /tmp/" + RUN in client.jobs[f"{RUN}-4"].entrypoint


def test_a_task_that_is_ended_stops_its_job(cluster: Callable[..., Cluster]) -> None:
    """Fails if the cluster goes on working for a task that a person ended, or an operator that did not start fails there."""
    operator, _ = orchestrating.load_dag()
    client = cluster([], other_1="RUNNING")
    operator.on_kill()
    operator.run = RUN
    client.add(f"{RUN}-2", JobStatus.RUNNING, "x")
    operator.on_kill()
    assert client.stopped == [f"{RUN}-2"]
    client.codes.append(None)
    with pytest.raises(ray_job.JobFailedError):  # it may be tried again, on another machine
        night(operator)


def test_an_ended_materialisation_stops_its_job(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a Dagster run that a person ends leaves the job, or its retry does not join the job of the first run."""
    names = orchestrating.load_assets()
    resource = names["Cluster"](dashboard="d", corpus="s3://b/day={day}", output="o")
    client = cluster([0])
    client.add(submission := "dagster-root-utterances-2026-11-22-1", JobStatus.RUNNING, "")

    async def interrupted(_: str) -> AsyncIterator[str]:
        yield "begun\n"
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(client, "tail_job_logs", interrupted)
        client.jobs.clear()
        names["utterances"](dagster_context("root"), resource)
    assert client.submitted == client.stopped == [submission]
    assert "jobs.nightly s3://b/day=2026-11-22 " in client.jobs[submission].entrypoint
    client.jobs[submission].status = JobStatus.RUNNING
    names["utterances"](dagster_context("retry", "root"), resource)
    assert client.submitted == [submission]


@pytest.mark.parametrize(
    ("check", "code", "passed"),
    [("sound", 0, True), ("sound", 1, False), ("sound", 3, False), ("sound", 2, None), ("within_limits", 0, True),
     ("within_limits", 3, False), ("within_limits", 1, None), ("within_limits", None, None)],
)  # fmt: skip
def test_asset_checks_tell_a_failed_test_from_one_that_could_not_run(
    cluster: Callable[..., Cluster], check: str, code: int | None, passed: bool | None
) -> None:
    """Fails if a broken output passes, or an unreachable one counts as tested."""
    names, client = orchestrating.load_assets(), cluster([code])
    client.logs = [["rows: 3 of at least 5\n"]]
    resource = names["Cluster"](dashboard="d", corpus="c", output="o")
    if passed is None:
        with pytest.raises(orchestrating.Failure):
            names[check](dagster_context("run"), resource)
        return
    result = names[check](dagster_context("run"), resource)
    assert result.passed == passed and result.metadata == {"log": "rows: 3 of at least 5"}
    command = {"sound": "jobs.verify o", "within_limits": "jobs.check o --max-reject-share 0.05"}[check]
    assert client.jobs[client.submitted[0]].entrypoint == f"python -m {command}"

"""Submission of a night's job to a running Ray cluster, for the Airflow DAG and the Dagster asset.

Needs `ray[default]` of the cluster's version and, for outputs in S3, `s3fs`. Ray reads its token from the
environment: `RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

import fsspec
from ray.job_submission import JobStatus, JobSubmissionClient

_REPORT = re.compile(r"^report in (.+/_runs/\d{6,}/report\.json)$", re.MULTILINE)
_POLL_S = 5.0
_FAILURE_CHARACTERS = 2000


class JobFailedError(RuntimeError):
    """Raised when the job failed. What it committed stays; a new submission resumes."""


def run_night(
    address: str,
    submission_id: str,
    corpus: str,
    by: Sequence[str],
    options: Sequence[str],
    *,
    working_dir: str | None = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run `python -m jobs.nightly` on the cluster.

    Args:
        address: URL of Ray's dashboard, such as http://speech-emotion-head-svc:8265.
        submission_id: name of one attempt. If it exists already, because the waiting task was restarted, it is followed; use
            another name for another attempt.
        corpus: folder or prefix of audio; files that are new or changed since the last night are annotated.
        by: columns of the summary.
        options: options of jobs.annotate.
        working_dir: source tree to upload; None if the nodes' image contains the code.
    Returns: the reports of the published runs; none when nothing was new.
    Raises: JobFailedError with the end of the job's log.
    """
    client = JobSubmissionClient(address)
    if submission_id not in {job.submission_id for job in client.list_jobs()}:
        manifest = f"/tmp/{submission_id}.jsonl"  # on the head; the plan is kept in the output
        words = ["python", "-m", "jobs.nightly", corpus, "--manifest", manifest, "--log-format", "json"]
        words += ["--by", *by] if by else []
        client.submit_job(
            entrypoint=shlex.join([*words, "--", "--audio-root", corpus, *options]),
            submission_id=submission_id,
            runtime_env={"working_dir": working_dir} if working_dir else None,
        )
    text = _follow(client, submission_id, log)
    status = client.get_job_status(submission_id)
    if status != JobStatus.SUCCEEDED:
        raise JobFailedError(f"{submission_id} ended as {status}:\n{text[-_FAILURE_CHARACTERS:]}")
    return [_read(uri) for uri in _REPORT.findall(text)]


def _follow(client: JobSubmissionClient, submission_id: str, log: Callable[[str], None]) -> str:
    """Pass on the lines of the job's log until it has ended. Returns: the whole log."""
    text = ""
    while True:
        ended = client.get_job_status(submission_id).is_terminal()
        longer = client.get_job_logs(submission_id)
        for line in longer[len(text) :].splitlines():
            log(line)
        text = longer
        if ended:
            return text
        time.sleep(_POLL_S)


def _read(uri: str) -> dict[str, Any]:
    with fsspec.open(uri, "rt", encoding="utf-8") as file:
        report: dict[str, Any] = json.load(file)
    return report

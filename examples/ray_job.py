"""Submit a night's job to a standing Ray cluster, wait for it, read what its run recorded: what DAG and asset share.

Needs `ray[default]` of the cluster's version and, for outputs in S3, `s3fs`. The token comes from the environment, as Ray has it:
`RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`.
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
_SHOWN_OF_A_FAILURE = 2000


class JobFailedError(RuntimeError):
    """The job ended with another status than 0. What it committed stays; submitted again it goes on."""


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
    """Run `python -m jobs.nightly` on the cluster; the reports of the runs it published, none when nothing was new.

    Args:
        address: of Ray's dashboard, such as http://speech-emotion-head-svc:8265.
        submission_id: one name for one try. A try that is there already, because whoever waited for it was restarted, is joined;
            to try again, use another name.
        corpus: folder or prefix of audio; what is new or changed in it since the last night is annotated.
        by: columns to sum up by.
        options: of jobs.annotate.
        working_dir: a checkout to send along; None where the nodes' image holds the code.
    Raises: JobFailedError with the last of what the job said.
    """
    client = JobSubmissionClient(address)
    if submission_id not in {job.submission_id for job in client.list_jobs()}:
        manifest = f"/tmp/{submission_id}.jsonl"  # on the head; what was planned stays in the output
        words = ["python", "-m", "jobs.nightly", corpus, "--manifest", manifest, "--log-format", "json"]
        words += ["--by", *by] if by else []
        client.submit_job(
            entrypoint=shlex.join([*words, "--", "--audio-root", corpus, *options]),
            submission_id=submission_id,
            runtime_env={"working_dir": working_dir} if working_dir else None,
        )
    said = _follow(client, submission_id, log)
    status = client.get_job_status(submission_id)
    if status != JobStatus.SUCCEEDED:
        raise JobFailedError(f"{submission_id} ended as {status}:\n{said[-_SHOWN_OF_A_FAILURE:]}")
    return [_read(uri) for uri in _REPORT.findall(said)]


def _follow(client: JobSubmissionClient, submission_id: str, log: Callable[[str], None]) -> str:
    """Hand on what the job says until it has ended; returns all of it."""
    said = ""
    while True:
        ended = client.get_job_status(submission_id).is_terminal()
        now = client.get_job_logs(submission_id)
        for line in now[len(said) :].splitlines():
            log(line)
        said = now
        if ended:
            return said
        time.sleep(_POLL_S)


def _read(uri: str) -> dict[str, Any]:
    with fsspec.open(uri, "rt", encoding="utf-8") as file:
        report: dict[str, Any] = json.load(file)
    return report

"""Commands of this project on a running Ray cluster, for the Airflow DAG and the Dagster asset.

Needs `ray[default]` of the cluster's version and, for outputs in S3, `s3fs`. Ray reads its token from the
environment: `RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import fsspec
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

_REPORT = re.compile(r"^report in (.+/_runs/\d{6,}/report\.json)$")
_POLL_S = 2.0
_STOP_S = 30.0
"""Seconds to wait until a job that was asked to stop has ended; Ray kills it after 3 s."""
_LAST_LINES = 30
_EXCLUDED = [".git", ".venv", "build"]
"""Paths of the working directory that are not uploaded, in addition to those in .gitignore, which Ray skips."""
_STOPPED = 130
_SIGNALLED = 128
"""Offset of the exit status of a command ended by a signal: 137 when it was killed, as for lack of memory."""


class JobFailedError(RuntimeError):
    """Raised when a job failed. Results that it committed stay; another submission resumes.

    Attributes:
        retry: whether another submission can help: not for a wrong option (status 2), nor for a job that a person stopped.
    """

    def __init__(self, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry


@dataclass
class Ended:
    """A submission that has ended: its exit status, the report of each run that it published, and its last lines."""

    submission: str
    exit_status: int = 0
    reports: list[str] = field(default_factory=list)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))

    def failure(self) -> JobFailedError:
        """Return the error of a job with a nonzero status."""
        status = self.exit_status
        retry = status == 1 or (status >= _SIGNALLED and status != _STOPPED)
        return JobFailedError(
            f"{self.submission} ended with status {status}:\n" + "\n".join(self.last_lines), retry=retry
        )


def run_night(
    address: str,
    run: str,
    corpus: str,
    by: Sequence[str],
    options: Sequence[str],
    *,
    after: int = 0,
    working_dir: str | None = None,
    timeout_s: float | None = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run `python -m jobs.nightly` on the cluster, or join the submission of this run that does.

    Args:
        corpus: folder or prefix of audio; files that are new or changed since the last night are annotated.
        by: columns of the summary.
        options: options of jobs.annotate.
        address, run, after, working_dir, timeout_s, log: see `run_command`.
    Returns: the reports of the published runs; none when nothing was new.
    Raises: JobFailedError with the end of the job's log.
    """
    # on the head; the plan is kept in the output
    words = ["python", "-m", "jobs.nightly", corpus, "--manifest", f"/tmp/{run}.jsonl", "--log-format", "json"]
    words += ["--by", *by] if by else []
    command = [*words, "--", "--audio-root", corpus, *options]
    ended = run_command(address, run, command, after=after, working_dir=working_dir, timeout_s=timeout_s, log=log)
    if ended.exit_status:
        raise ended.failure()
    return [_read(uri) for uri in ended.reports]


def run_command(
    address: str,
    run: str,
    command: Sequence[str],
    *,
    after: int = 0,
    working_dir: str | None = None,
    timeout_s: float | None = None,
    log: Callable[[str], None] = print,
) -> Ended:
    """Run a command on the cluster, or join the submission that already does, and wait for its end.

    The n-th submission of a run is named `<run>-<n>`. A submission that is running is joined. So is one that succeeded while
    nobody waited for it: its result is returned.

    Args:
        address: URL of Ray's dashboard, such as http://speech-emotion-head-svc:8265.
        run: name that all tries of one task share.
        after: number of a submission; up to it, submissions that have ended are ignored, and the command runs anew.
        working_dir: source tree to upload; None if the nodes' image contains the code.
        timeout_s: seconds after its start at which a submission is stopped; None for no limit.
        log: called with each line of the job's log.
    Raises: JobFailedError when the time is over, the cluster lost the job, or this run is running another command.
    """
    client = JobSubmissionClient(address)
    submission = _join(client, run, shlex.join(command), after) or _submit(
        client, run, shlex.join(command), after, working_dir
    )
    log(f"submission {submission} at {address}")
    return _follow(client, submission, timeout_s, log)


def stop_run(address: str, run: str) -> None:
    """Stop the active submissions of a run, and wait until they have ended."""
    _stop(JobSubmissionClient(address), run)


def _stop(client: JobSubmissionClient, run: str) -> None:
    active = [number for number, job in _submissions(client, run).items() if not job.status.is_terminal()]
    for number in active:
        client.stop_job(f"{run}-{number}")
    deadline = time.monotonic() + _STOP_S
    for number in active:
        while not client.get_job_status(f"{run}-{number}").is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)


def _submissions(client: JobSubmissionClient, run: str) -> dict[int, JobDetails]:
    """Return the submissions of a run that the cluster remembers, by number."""
    ours = re.compile(re.escape(run) + r"-(\d+)")
    matches = ((ours.fullmatch(job.submission_id or ""), job) for job in client.list_jobs())
    return {int(match[1]): job for match, job in matches if match}


def _join(client: JobSubmissionClient, run: str, command: str, after: int) -> str | None:
    """Return the submission that does, or did, what is wanted; None if there is none."""
    submissions = _submissions(client, run)
    for number, job in submissions.items():
        if not job.status.is_terminal():
            if job.entrypoint != command:
                raise JobFailedError(f"{run}-{number} runs another command; stop it or wait for its end", retry=True)
            return f"{run}-{number}"
    last = max(submissions, default=0)
    if last > after and submissions[last].status == JobStatus.SUCCEEDED and submissions[last].entrypoint == command:
        return f"{run}-{last}"
    return None


def _submit(client: JobSubmissionClient, run: str, command: str, after: int, working_dir: str | None) -> str:
    environment = {"working_dir": working_dir, "excludes": _EXCLUDED} if working_dir else None
    name = f"{run}-{max(after, *_submissions(client, run), 0) + 1}"
    try:
        client.submit_job(entrypoint=command, submission_id=name, runtime_env=environment)
    except RuntimeError:
        # another process may have submitted the same name since the look above
        if joined := _join(client, run, command, after):
            return joined
        raise
    return name


def _follow(client: JobSubmissionClient, submission: str, timeout_s: float | None, log: Callable[[str], None]) -> Ended:
    """Pass on the job's log until it has ended. Raises: JobFailedError when its time is over."""
    reader = _LogReader(Ended(submission), log)
    details = client.get_job_info(submission)
    ends_at = None if timeout_s is None else (details.start_time or time.time() * 1000) / 1000 + timeout_s
    while True:
        ended_before = details.status.is_terminal()
        complete = asyncio.run(reader.read(client, ends_at))
        details = client.get_job_info(submission)
        if details.status.is_terminal() and (complete or ended_before):
            reader.ended.exit_status = _exit_status(details)
            return reader.ended
        if ends_at is not None and time.time() >= ends_at and not details.status.is_terminal():
            _stop(client, submission.rpartition("-")[0])
            raise JobFailedError(f"{submission} did not end within {timeout_s:.0f} s and was stopped", retry=True)
        time.sleep(_POLL_S)


class _LogReader:
    """Reader of a job's log that passes on each line once, over any number of connections."""

    def __init__(self, ended: Ended, log: Callable[[str], None]) -> None:
        self.ended, self._log = ended, log
        self._characters = 0
        """Number of characters passed on."""

    async def read(self, client: JobSubmissionClient, ends_at: float | None) -> bool:
        """Pass on new lines until the log ends, the connection breaks or the time is over.

        A connection sends only what is new. The next one begins with the whole log, of which the known part is skipped.

        Returns: whether the log has ended.
        """
        position, rest = 0, ""
        with suppress(aiohttp.ClientError, OSError, RuntimeError):  # OSError includes TimeoutError
            async with asyncio.timeout(None if ends_at is None else ends_at - time.time()):
                async for text in client.tail_job_logs(self.ended.submission):
                    rest += text[max(0, self._characters + len(rest) - position) :]
                    position += len(text)
                    *lines, rest = rest.split("\n")
                    for line in lines:
                        self._take(line, len(line) + 1)
            if rest:
                self._take(rest, len(rest))
            return True
        return False

    def _take(self, line: str, characters: int) -> None:
        self._characters += characters
        self._log(line)
        self.ended.last_lines.append(line)
        if report := _REPORT.match(line):
            self.ended.reports.append(report[1])


def _exit_status(details: JobDetails) -> int:
    """Return the exit status of a job that has ended. Raises: JobFailedError if it has none."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return _STOPPED
    if not details.driver_exit_code:
        message = f"{details.submission_id} failed before it ran, or the cluster lost it: {details.message or ''}"
        raise JobFailedError(message[:2000], retry=True)
    code = int(details.driver_exit_code)
    return code if code > 0 else _SIGNALLED - code  # for signal n, Ray has -n


def _read(uri: str) -> dict[str, Any]:
    with fsspec.open(uri, "rt", encoding="utf-8") as file:
        report: dict[str, Any] = json.load(file)
    return report

"""Submit a job to a cluster's job API, follow it, retry it if that can help, and exit with the job's status.

    python -m jobs.submit --address http://HEAD:8265 --run-id nightly -- --manifest s3://b/m.jsonl --output s3://b/out

A command, or options of `jobs.annotate`, follow `--`. A submission id cannot be used twice, so the n-th submission of a
run is `<run id>-<n>`. Progress is stored in the output, and each submission resumes there. Ctrl-C stops following the
job but not the job: the same command follows it again while it runs. Another command with the same run id is refused
while the job runs.

Exit status: the job's own; 1 also when no head answers or the cluster lost the job; 2 also for a rejected token or an
invalid command line; 130 when the job, or following it, was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.interrupts import INTERRUPTED
from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.errors import ConfigError, JobError
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_EXCLUDED = [".git", ".venv", "build"]
"""Paths of the working directory that are not uploaded, in addition to those in .gitignore, which Ray skips."""
_LOST_FOR_S = 300.0
"""Seconds a head may be unreachable, as when its pod moves, before a followed job counts as lost."""
_POLL_S = 2.0
_JSON_LOG = ("--log-format", "json")
"""Options of `jobs.annotate` for a log that a cluster collects; options given after them win."""
_SIGNALLED = 128
"""Offset of the exit status of a driver ended by a signal: 137 when it was killed, as for lack of memory."""


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "submit",
        usage="%(prog)s [options] -- COMMAND, or options of jobs.annotate",
        description="Submit a job to a Ray cluster, follow it, retry it, and end with its exit status. A token is taken from "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get(_ADDRESS, "http://127.0.0.1:8265"),
        metavar="URL",
        help=f"URL of the head's dashboard (default: ${_ADDRESS}, else %(default)s)",
    )
    parser.add_argument(
        "--run-id",
        default=time.strftime("annotate-%Y%m%d-%H%M%S", time.gmtime()),
        metavar="NAME",
        help="name of the run, which its submissions share (default: from the clock)",
    )
    parser.add_argument(
        "--working-dir", metavar="DIR", help="folder of the code to upload (default: run the code of the nodes' image)"
    )
    parser.add_argument(
        "--env",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="environment variables of the job",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="extra submissions while the exit status is 1, or 128 and above (killed), except 130",
    )
    parser.add_argument("--no-follow", action="store_true", help="only submit, and print the submission id")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit a job and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    options = command_line().parse_all(words[:split])

    def run(printer: Printer) -> int:
        try:
            return _run(options, _command(words[split + 1 :]), printer)
        except KeyboardInterrupt:
            print("\nStopped following. A submitted job continues; the same command follows it again.", file=sys.stderr)
            return INTERRUPTED

    return run_guarded("submit", run, json=options.json)


def _command(words: list[str]) -> str:
    if not words:
        raise ConfigError("nothing to submit: give a command, or options of jobs.annotate, after --")
    if words[0].startswith("-"):
        words = ["python", "-m", "jobs.annotate", *_JSON_LOG, *words]
    return shlex.join(words)


def _run(options: argparse.Namespace, command: str, printer: Printer) -> int:
    if not _RUN_ID.fullmatch(options.run_id):
        raise ConfigError(f"--run-id {options.run_id!r}: letters, digits, _, . and - are allowed")
    if absent := [pair for pair in options.env if "=" not in pair]:
        raise ConfigError(f"--env {absent[0]!r} is not NAME=VALUE")
    environment: dict[str, object] = {"env_vars": dict(pair.split("=", 1) for pair in options.env)}
    if options.working_dir is not None:
        environment |= {"working_dir": options.working_dir, "excludes": _EXCLUDED}
    client, submissions = _connect(options.address), list[str]()
    status: int | None = None
    for left in range(options.retries, -1, -1):
        with _clear(options.address):
            submission = _running(client, options.run_id, command) or client.submit_job(
                entrypoint=command, runtime_env=environment, submission_id=_next_id(client, options.run_id)
            )
        print(f"submission {submission} at {options.address}", file=sys.stderr)
        submissions.append(submission)
        if options.no_follow:
            printer.line(submission)
            break
        status = _follow(client, submission, options.address)
        if not left or not _is_retried(status):
            break
        print(f"submission {submission} ended with status {status}; {left} more to try", file=sys.stderr)
    printer.document({"address": options.address, "submissions": submissions, "exit_status": status})
    return status or 0


def _is_retried(status: int) -> bool:
    return status == 1 or (status >= _SIGNALLED and status != INTERRUPTED)


def _connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # these variables would override the requested address
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[_ADDRESS] = address
    with _clear(address):
        return JobSubmissionClient(address)


@contextmanager
def _clear(address: str) -> Iterator[None]:
    """Replace the long errors of Ray with one-sentence messages. Raises: ConfigError or JobError."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"the head at {address} refuses this token, or wants one: {str(error).splitlines()[0]} Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise JobError(
            f"no Ray head answers at {address}: {type(error).__name__}. It is the dashboard's address that is needed, often "
            "port 8265, forwarded or from inside the cluster"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the head at {address} does not take the job: {str(error).strip()[:500]}") from error


def _submissions(client: JobSubmissionClient, run_id: str) -> dict[int, JobDetails]:
    """Return the submissions of a run that the cluster remembers, by number."""
    ours = re.compile(re.escape(run_id) + r"-(\d+)")
    found = ((ours.fullmatch(job.submission_id or ""), job) for job in client.list_jobs())
    return {int(match[1]): job for match, job in found if match}


def _running(client: JobSubmissionClient, run_id: str, command: str) -> str | None:
    """Return the active submission of this run, or None. Raises: ConfigError when it runs another command."""
    for job in _submissions(client, run_id).values():
        if not job.status.is_terminal():
            if job.entrypoint != command:
                # neither command is printed: their URIs may contain tokens
                raise ConfigError(
                    f"--run-id {run_id} is in use: submission {job.submission_id} runs another command, and nothing was "
                    f"submitted. Give another --run-id, wait for it, or end it with: ray job stop {job.submission_id}"
                )
            return job.submission_id
    return None


def _next_id(client: JobSubmissionClient, run_id: str) -> str:
    return f"{run_id}-{max(_submissions(client, run_id), default=0) + 1}"


def _follow(client: JobSubmissionClient, submission: str, address: str) -> int:
    """Print the job's log as it grows, and return the job's exit status."""
    printed, answered = 0, time.monotonic()
    while True:
        try:
            printed = asyncio.run(_tail(client, submission, printed))
            with _clear(address):
                details = client.get_job_info(submission)
        except JobError:
            if time.monotonic() - answered > _LOST_FOR_S:
                raise
        else:
            answered = time.monotonic()
            if details.status.is_terminal():
                asyncio.run(_tail(client, submission, printed))
                return _status_of(details)
        time.sleep(_POLL_S)


async def _tail(client: JobSubmissionClient, submission: str, printed: int) -> int:
    """Print new log text until the log ends or the connection breaks. Returns: number of characters printed so far."""
    import aiohttp

    seen = 0
    try:
        async for text in client.tail_job_logs(submission):
            print(text[max(0, printed - seen) :], end="", flush=True)
            seen += len(text)
    except (aiohttp.ClientError, OSError, RuntimeError):  # the caller tries again
        pass
    return max(printed, seen)


def _status_of(details: JobDetails) -> int:
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        print("the job was stopped", file=sys.stderr)
        return INTERRUPTED
    if details.driver_exit_code:
        # for a process ended by signal n, a shell reports 128 + n and Ray -n
        code = int(details.driver_exit_code)
        return code if code > 0 else _SIGNALLED - code
    print(
        f"the job failed before it ran, or the cluster lost it: {redacted(details.message or '').strip()[:2000]}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())

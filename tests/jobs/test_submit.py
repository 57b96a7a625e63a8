"""`jobs.submit` against a real head: exit status, retries, following, tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.submit import main
from tests.support.corpus import ROOT
from tests.support.ray_head import Head, free_port, head

KILLED_ONCE = """import os, pathlib
p = pathlib.Path({0!r})
there = p.exists()
p.touch()
there or os.kill(os.getpid(), 9)"""
FAILS_ONCE = """import pathlib, sys
p = pathlib.Path({0!r})
there = p.exists()
p.touch()
print("there", there)
sys.exit(not there)"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, own_ray: None) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("head"), 2) as started:
        yield started


def submit(*words: str, environment: dict[str, str], expect: int) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/nonexistent", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.submit", *words],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def joined(cluster: Head, run: str) -> tuple[list[str], dict[str, str]]:
    """Options that name cluster and run, and the token; a RAY_ADDRESS that must not win."""
    return ["--address", cluster.dashboard, "--run-id", run], {**cluster.environment, "RAY_ADDRESS": "127.0.0.1:1"}


def test_the_code_is_shipped_and_the_status_is_the_jobs_own(cluster: Head) -> None:
    """Fails if a usage error of the job, status 2, ends as Ray's 1, is tried again, or its words do not come back."""
    options, token = joined(cluster, "usage")
    done = submit(
        *options, "--working-dir", ".", "--retries", "2", "--", "--modee", "mean", environment=token, expect=2
    )
    assert "did you mean '--mode'" in done.stdout
    assert done.stderr.count("submission usage-") == 1


def test_what_failed_is_submitted_again_under_a_new_id(cluster: Head, tmp_path: Path) -> None:
    """Fails if status 1 is not retried, if an id is used twice, or the last status is not the one that counts."""
    options, token = joined(cluster, "again")
    command = ["python", "-c", FAILS_ONCE.format(str(tmp_path / "flag"))]
    done = submit(*options, "--env", "A=1", "--retries", "3", "--", *command, environment=token, expect=0)
    assert [line for line in done.stdout.splitlines() if line in ("there False", "there True")] == [
        "there False",
        "there True",
    ]
    assert (
        "submission again-1 ended with status 1; 3 more to try" in done.stderr and "submission again-2" in done.stderr
    )
    assert "again-3" not in done.stderr


def test_a_run_that_goes_on_is_followed_and_not_doubled(cluster: Head) -> None:
    """Fails if the same command starts a second job beside the first, or loses the first one's log or status."""
    options, token = joined(cluster, "long")
    command = [
        "python",
        "-c",
        "import time, sys; print('begun', flush=True); time.sleep(12); print('over'); sys.exit(5)",
    ]
    started = submit(*options, "--no-follow", "--", *command, environment=token, expect=0)
    assert started.stdout == "long-1\n"
    done = submit(*options, "--", *command, environment=token, expect=5)
    assert "submission long-1" in done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("begun", "over")] == ["begun", "over"]


def test_a_driver_that_was_killed_is_submitted_again(cluster: Head, tmp_path: Path) -> None:
    """Fails if status 137, as of a driver killed for lack of memory, is final."""
    options, token = joined(cluster, "killed")
    command = ["python", "-c", KILLED_ONCE.format(str(tmp_path / "flag"))]
    done = submit(*options, "--retries", "1", "--", *command, environment=token, expect=0)
    assert "submission killed-1 ended with status 137; 1 more to try" in done.stderr
    assert "submission killed-2" in done.stderr


class Ended(str):
    """A job status of Ray's."""

    __slots__ = ()

    def is_terminal(self) -> bool:
        return self != "RUNNING"


class Stub:
    """Ray's client with the submissions of others; each of ours ends at once with the next of `codes`."""

    def __init__(self, others: dict[str, tuple[str, str]], codes: list[int | None]) -> None:
        self.jobs = {
            name: SimpleNamespace(submission_id=name, status=Ended(status), entrypoint=command, driver_exit_code=0)
            for name, (status, command) in others.items()
        }
        self.codes, self.submitted = codes, list[str]()

    def list_jobs(self) -> list[SimpleNamespace]:
        return [*self.jobs.values()]

    def submit_job(self, *, entrypoint: str, submission_id: str, **_: object) -> str:
        self.submitted.append(submission_id)
        code = self.codes.pop(0)
        status = Ended("STOPPED" if code is None else "FAILED" if code else "SUCCEEDED")
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id, status=status, entrypoint=entrypoint, driver_exit_code=code, message=""
        )
        return submission_id

    def get_job_info(self, submission: str) -> SimpleNamespace:
        self.jobs[submission].status = Ended(str(self.jobs[submission].status).replace("RUNNING", "SUCCEEDED"))
        return self.jobs[submission]

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in ():
            yield text


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stub]:
    def made(codes: list[int | None], **others: tuple[str, str]) -> Stub:
        client = Stub({name.replace("_", "-"): job for name, job in others.items()}, codes)
        monkeypatch.setattr("jobs.submit._connect", lambda _: client)
        return client

    return made


@pytest.mark.parametrize(
    ("codes", "status", "submissions"),
    [
        ([137, 0], 0, 2), ([-9, 0], 0, 2), ([-11, -6, 0], 0, 3), ([255, 1, 0], 0, 3), ([128, 128, 128, 128, 0], 128, 4),
        ([143, 0], 0, 2), ([130, 0], 130, 1), ([-2, 0], 130, 1), ([None, 0], 130, 1), ([2, 0], 2, 1), ([127, 0], 127, 1),
    ],
)  # fmt: skip
def test_which_statuses_are_retried(
    stub: Callable[..., Stub], codes: list[int | None], status: int, submissions: int
) -> None:
    """Fails if a driver that a signal ended is not submitted again, or one that was interrupted or refused is."""
    client = stub(codes)
    assert main(["--run-id", "r", "--retries", "3", "--", "job"]) == status
    assert client.submitted == [f"r-{number}" for number in range(1, submissions + 1)]


OTHER = "python -m jobs.annotate --manifest 's3://b/m?token=CANARY' --output s3://b/other"


@pytest.mark.parametrize(
    "words", [["--", "--manifest", "mine.jsonl", "--output", "mine"], ["--no-follow", "--", "mine"]]
)
def test_a_run_id_in_use_by_another_command_is_refused(
    stub: Callable[..., Stub], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Fails if the other job is followed, and its status taken for that of one's own manifest, which never ran."""
    client = stub([0], nightly_3=("RUNNING", OTHER))
    assert main(["--run-id", "nightly", *words]) == 2
    said = capsys.readouterr()
    assert "--run-id nightly is in use: submission nightly-3 runs another command" in said.err
    assert "ray job stop nightly-3" in said.err and "CANARY" not in said.err + said.out
    assert client.submitted == []


def test_a_run_id_that_is_free_again_is_used(stub: Callable[..., Stub]) -> None:
    """Fails if the ended submissions of last night, or those of another run, keep tonight's command from running."""
    others = {"nightly_1": ("SUCCEEDED", OTHER), "nightly_2": ("FAILED", OTHER), "nightly_b_7": ("RUNNING", OTHER)}
    client = stub([0], **others)
    assert main(["--run-id", "nightly", "--", "mine"]) == 0
    assert client.submitted == ["nightly-3"]


def test_the_same_command_is_followed(stub: Callable[..., Stub]) -> None:
    """Fails if the refusal of another command refuses the same one, however it was quoted, or runs it twice."""
    client = stub([], nightly_1=("RUNNING", "python -c 'print(1)'"))
    assert main(["--run-id", "nightly", "--", "python", "-c", "print(1)"]) == 0
    assert client.submitted == []


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}], ids=["none", "wrong"])
def test_a_token_that_is_refused_is_named(cluster: Head, token: dict[str, str]) -> None:
    """Fails if a job is taken without the token, or the refusal is a traceback."""
    options, _ = joined(cluster, "nobody")
    done = submit(*options, "--", "true", environment=token, expect=2)
    assert "refuses this token, or wants one" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_that_does_not_answer_is_named() -> None:
    """Fails if it hangs, or ends without saying which address was tried."""
    address = f"http://127.0.0.1:{free_port()}"
    done = submit("--address", address, "--", "true", environment={}, expect=1)
    assert f"no Ray head answers at {address}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "after --"),
        (["--run-id", "a/b", "--", "true"], "--run-id 'a/b'"),
        (["--env", "A", "--", "true"], "--env 'A' is not NAME=VALUE"),
        (["--retrys", "1", "--", "true"], "did you mean '--retries'"),
    ],
)
def test_a_command_line_that_cannot_be_used(words: list[str], said: str) -> None:
    """Fails if it is found out only after a cluster was asked."""
    assert said in submit(*words, environment={}, expect=2).stderr

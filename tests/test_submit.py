"""`jobs.submit` against a real head: exit status, retries, following, tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import ROOT
from tests.test_cluster import Head, free_port, head

FAILS_ONCE = """import pathlib, sys
p = pathlib.Path({0!r})
there = p.exists()
p.touch()
print("there", there)
sys.exit(not there)"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
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

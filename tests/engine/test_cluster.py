"""The same job on a cluster: submitted with `ray job submit`, and on 1 and 16 logical CPUs."""

from __future__ import annotations

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.engine.cluster import _start_or_join
from tests.support.corpus import ONE_ACTOR, ROOT, annotate, model_options, rows, utterances, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.ray_head import BIN, free_port, head

pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.mark.parametrize("cpus", [1, 16])
def test_it_runs_on_any_number_of_logical_cpus(cpus: int, tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails, by running out of time, if the steps together ask for more CPUs than there are: a deadlock."""
    if cpus == 1:
        records = [*rows(6), *rows(2, with_text=False, prefix="heard")]
        options, armed = model_options(checkpoints, asr), {}
    else:  # a dozen actors on two cores: their models would take minutes to import
        records = rows(8)
        models, widths = models_of("mean")
        options, armed = [*models, "--language", "en"], environment(widths)
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    with head(tmp_path, cpus) as cluster:
        annotate(manifest, tmp_path / "out", *options, "--shard-rows", "4", env={**cluster.environment, **armed})
    assert utterances(tmp_path / "out").num_rows == 8


def test_a_submitted_job_ships_its_code_and_ends_with_its_status(tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails if `ray job submit --working-dir .` cannot run the job, or hides that it failed."""
    manifest = write_manifest(tmp_path / "m.jsonl", rows(4))
    options = [*model_options(checkpoints, asr), "--shard-rows", "2", *ONE_ACTOR]
    with head(tmp_path, 2) as cluster:

        def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
            job = [
                "python",
                "-m",
                "jobs.annotate",
                "--manifest",
                str(manifest),
                "--output",
                str(tmp_path / "out"),
                *arguments,
            ]
            command = [
                str(BIN / "ray"),
                "job",
                "submit",
                "--address",
                cluster.dashboard,
                "--working-dir",
                ".",
                "--",
                *job,
            ]
            environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": ""}
            return subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
            )

        done = submit(*options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "run 000001: 4 rows = 4 annotated + 0 rejected" in done.stdout
        refused = submit("--modee", "mean")
        assert refused.returncode != 0 and "--mode" in refused.stdout + refused.stderr
        relative = submit("--output", "out-of-nobody")
        assert relative.returncode != 0 and "'out-of-nobody' is a relative path" in relative.stdout + relative.stderr
    assert utterances(tmp_path / "out").num_rows == 4


def test_a_cluster_that_does_not_answer_ends_the_job(tmp_path: Path, checkpoints: Path, asr: Path) -> None:
    """Fails if a wrong RAY_ADDRESS hangs, as ray.init does, or ends with anything but status 1 and a sentence."""
    manifest = write_manifest(tmp_path / "m.jsonl", rows(1))
    nobody = {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = annotate(manifest, tmp_path / "out", *model_options(checkpoints, asr), env=nobody, expect=1)
    assert nobody["RAY_ADDRESS"] in done.stderr and "run the same command again" in done.stderr


@pytest.mark.parametrize(("failures", "joined"), [(0, True), (2, True), (3, False)])
def test_a_cluster_that_is_still_starting_is_joined_at_a_later_try(
    monkeypatch: pytest.MonkeyPatch, failures: int, joined: bool
) -> None:
    """Fails if a job ends because its node of Ray was slow to start once, or tries for ever where none starts."""
    calls = []

    def init(**_: object) -> None:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(ConnectionError) if not joined else nullcontext():
        _start_or_join({}, tries=3)
    assert len(calls) == min(failures + 1, 3)

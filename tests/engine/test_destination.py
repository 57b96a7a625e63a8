"""Outputs that Ray deletes with a submitted job are refused; all others are left alone."""

from __future__ import annotations

import io
import itertools
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import nightly
from jobs.annotate import main
from pipeline.config import load_config
from pipeline.engine.destination import require_lasting, unshared_warning
from pipeline.engine.run import Driver
from pipeline.errors import ConfigError, JobError
from pipeline.shard.context import Work
from tests.support.cases import case
from tests.support.corpus import rows, write_manifest
from tests.support.noop_job import no_cluster
from tests.support.outputs import MODELS
from tests.support.pins import by_role

SUBMITTED = {
    "RAY_ADDRESS": "10.0.0.1:6379",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}),
}
RELATIVE = ["out", "./out", "../out", ".", "a/b c/out", "file://out", "file:out", "local://out", "file://../out"]
HOMES = ["~", "~/out", "~nobody/out", "file://~/out"]
LASTING = ["s3://bucket/out", "gs://bucket/out", "/mnt/shared/out", "file:///mnt/shared/out", "local:/mnt/out"]


def test_a_relative_output_of_a_submitted_job_is_refused():
    """Fails if a job writes into Ray's working directory, or a home of the head, and ends with status 0."""
    for output in [*RELATIVE, *HOMES]:
        with case(output):
            with pytest.raises(ConfigError, match=r"submitted to Ray.*an absolute path") as error:
                require_lasting(output, SUBMITTED)
            assert repr(output) in str(error.value)


@pytest.mark.parametrize("output", LASTING)
def test_an_output_that_lasts_is_accepted(output):
    """Fails if a submitted job cannot write to a store or a shared folder."""
    require_lasting(output, SUBMITTED)


def test_outside_a_submitted_job_nothing_is_refused():
    """Fails if a relative output is refused on one's own machine, in a shell on the head, or with a runtime environment."""
    shell = {"RAY_ADDRESS": "10.0.0.1:6379"}
    environments = [{}, shell, {**shell, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"pip": []}})}]
    for output, environment in itertools.product([*RELATIVE, *HOMES, *LASTING], environments):
        with case(output, environment):
            require_lasting(output, environment)


def test_the_working_directory_of_ray_is_refused_however_it_is_named(tmp_path, monkeypatch):
    """Fails if an absolute path, or a link, leads into the folder that Ray deletes; or if only the variable tells of a job."""
    package = tmp_path / "session_x" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    (tmp_path / "link").symlink_to(package)
    for output in (package / "out", f"file://{package}/out", tmp_path / "link" / "out"):
        with pytest.raises(ConfigError, match="working directory that Ray unpacks"):
            require_lasting(str(output), SUBMITTED)
    monkeypatch.chdir(package)
    with pytest.raises(ConfigError, match="relative path"):
        require_lasting("out", {})
    require_lasting(str(tmp_path / "out"), {})


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_the_job_refuses_before_any_work(tmp_path, monkeypatch, capsys, words):
    """Fails if manifests are read, a night is begun or anything is written first, or if the status is not 2."""
    monkeypatch.chdir(tmp_path)
    manifest = write_manifest(tmp_path / "m.jsonl", rows(1))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED["RAY_JOB_CONFIG_JSON_ENV_VAR"])
    (tmp_path / "job.yaml").write_text("output: from-the-file\n")
    for output in (["--output", "out"], ["--config", "job.yaml"]):
        assert main(["--manifest", "m.jsonl", *output, *words]) == 2
        assert "submitted to Ray" in capsys.readouterr().err
    assert nightly.main([".", "--manifest", "tonight.jsonl", "--", "--output", "out"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {manifest.name, "job.yaml"}


@pytest.mark.parametrize(
    ("output", "nodes", "warned"), [("/out", 2, True), ("/out", 1, False), ("s3://b/out", 9, False)]
)
def test_a_local_output_of_several_nodes_is_warned_of(output, nodes, warned):
    """Fails if nobody is told why a job fails that writes on several nodes, or if one machine is warned."""
    assert bool(unshared_warning(output, nodes)) == warned


def test_nothing_is_created_by_the_check(tmp_path: Path, monkeypatch):
    """Fails if asking about an output makes it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        require_lasting("out", SUBMITTED)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("output", ["out", "./a/../out", "file://out"])
def test_workers_get_an_absolute_output(tmp_path, monkeypatch, output):
    """Fails if workers of a cluster, whose current folder is another, look for a relative output in theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    outputs = []

    def run_shards(work: Work, *_: object) -> None:
        outputs.append(work.output)
        raise JobError("far enough")

    pinning = nullcontext(SimpleNamespace(warnings=(), result=lambda: (MODELS, {"audio_embedding": 4})))
    monkeypatch.setattr("pipeline.engine.run.cluster", no_cluster)
    monkeypatch.setattr("pipeline.engine.run.run_shards", run_shards)
    monkeypatch.setattr("pipeline.engine.run.Pinning", lambda *_: pinning)
    monkeypatch.setattr("pipeline.models.roles.choose", lambda *_, **__: by_role({"fusion/en": "m"}))
    manifest = write_manifest(tmp_path / "m.jsonl", rows(2))
    with pytest.raises(JobError, match="far enough"):
        Driver(
            load_config(None, {"manifest": [str(manifest)], "output": output, "embeddings": "audio"}), io.StringIO()
        ).run()
    assert outputs[0].startswith("/") and Path(outputs[0]).resolve() == tmp_path / "out"

"""The command line as a person or another program meets it, up to where Ray would start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.annotate import command_line, main
from pipeline.config import JobConfig
from tests.support.corpus import ROOT, broken_rows, rows, write_manifest
from tests.support.noop_job import no_cluster


def job(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.annotate", *map(str, words)], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run the job in this process; it must end with 2 before any work. Returns what it said."""
    monkeypatch.setattr("jobs.annotate.signal.signal", lambda *_: None)

    def run(*words: object) -> str:
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        assert status == 2, said
        assert not said.out and "Traceback" not in said.err
        return said.err

    return run


@pytest.fixture
def without_ray(monkeypatch):
    """Models are checked while Ray starts, which no refusal needs."""
    monkeypatch.setattr("pipeline.engine.run.cluster", no_cluster)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "manifest.jsonl", rows(3))


@pytest.fixture(scope="session")
def usable_models(checkpoints: Path, asr: Path) -> dict[str, Path]:
    """An option of each kind of model, with a model it can use."""
    folders = (checkpoints / "mean-en", checkpoints / "bert-en", asr)
    return dict(zip(("--emotion-model", "--sentence-encoder", "--asr-model"), folders, strict=True))


# -- help


def test_help_reads_well():
    """Fails if an option is missing from the help, lines are too wide, a sentence is cut, or the status is not 0."""
    done = job("--help", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    for name in JobConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in done.stdout, name
    for word in (
        "--config",
        "--help",
        "usage:",
        "hub id",
        "id@revision",
        "run the same command again",
        "default: mean",
    ):
        assert word.lower() in " ".join(done.stdout.lower().split()), word
    assert max(map(len, done.stdout.splitlines())) <= 110
    assert "==SUPPRESS==" not in done.stdout and "None" not in done.stdout


def test_every_option_is_explained():
    """Fails if an option has no help, or a default is named that is not the default."""
    for action in command_line()._actions:
        assert action.help, action.option_strings
    defaults = {
        a.dest: str(a.help).rpartition("(default: ")[2] for a in command_line()._actions if "(default: " in str(a.help)
    }
    for name, field in JobConfig.model_fields.items():
        if isinstance(field.default, str) and name in defaults:
            resolved = {"fp32": "auto", "int8 on cpu": "auto"}  # what auto means may be said instead
            assert any(defaults[name].startswith(d) for d in (field.default, *resolved)), name


def test_version():
    """Fails if the version cannot be asked for."""
    done = job("--version")
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit()


# -- usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["--manifest is required", "--output is required"]),
        (["--manifest", "m.jsonl"], ["--output is required"]),
        (["--output", "out"], ["--manifest is required"]),
        (["--manifset", "m.jsonl", "--output", "out"], ["'--manifset'", "'--manifest'"]),
        (["--manifest", "m", "--output", "out", "--embedings=none"], ["'--embedings'", "'--embeddings'"]),
        (["--manifest", "m", "--output", "out", "--mode", "meen"], ["--mode", "'meen'", "mean"]),
        (["--manifest", "m", "--output", "out", "--shard-rows", "-5"], ["--shard-rows"]),
        (
            ["--manifest", "m", "--output", "out", "--partition-by", "emotion"],
            ["--partition-by", "'emotion'", "two partitions"],
        ),
        (["--manifest", "m", "--output", "out", "--config", "gone.yaml"], ["gone.yaml"]),
        (["--manifest", "m", "--output", "nope://x"], ["nope://x"]),
        (["--manifest", "m", "--output", ""], ["--output"]),
    ],
)
def test_usage_errors_end_with_2(refused, tmp_path, monkeypatch, words, said):
    """Fails if a mistake is found after work began, ends in a traceback, or the message does not name it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").write_text('{"audio": "a.wav"}\n')
    message = refused(*words)
    assert all(word in message for word in said), message
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unknown_key_in_the_config_file(refused, tmp_path, manifest):
    """Fails if a mistyped key in the file is ignored."""
    (tmp_path / "job.yaml").write_text("asr:\n  modle: tiny\n")
    message = refused("--manifest", manifest, "--output", tmp_path / "out", "--config", tmp_path / "job.yaml")
    assert "asr_modle" in message and "asr_model" in message


def test_a_missing_manifest_names_the_nearest_file(refused, tmp_path, manifest):
    """Fails if the person has to find the typing error alone."""
    message = refused("--manifest", tmp_path / "manifset.jsonl", "--output", tmp_path / "out")
    assert "manifset.jsonl" in message and "manifest.jsonl" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n", "id,wav\n1,a.wav\n", "<html></html>", '[{"audio": "a.wav"}]'])
def test_a_file_that_is_no_manifest(refused, tmp_path, content):
    """Fails if a web page, an array or a table without audio is taken for a manifest without rows.

    An empty file is a manifest of no rows, and no mistake.
    """
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    if content.strip():
        assert "m.jsonl" in refused("--manifest", path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--emotion-model", "--sentence-encoder", "--asr-model"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
@pytest.mark.usefixtures("without_ray")
def test_a_model_that_cannot_be_used(refused, tmp_path, usable_models, option, kind):
    """Fails if a bad model is found after the plan, is not named with its option, or leaves something at the output."""
    manifest = write_manifest(tmp_path / "m.jsonl", [{"audio": row["audio"]} for row in rows(2)])
    bad = tmp_path / "bad"
    if kind == "empty":
        bad.mkdir()
    models = {**usable_models, option: bad}
    words = [word for name, model in models.items() for word in (name, f"en={model}")]
    message = refused("--manifest", manifest, "--output", tmp_path / "out", *words)
    assert f"{option} en={bad}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("spaeker", "'speaker'"),
        ("label", "output of this job"),
        ("line", "'manifest_line'"),
        ("tags", "cannot be used as folder names"),
        ("audio", "output of this job"),
    ],
)
def test_a_partition_column_that_cannot_be(refused, tmp_path, column, said):
    """Fails if a mistyped, renamed or nested partition column is found on a worker, or the hint is missing."""
    manifest = write_manifest(tmp_path / "m.jsonl", [{**row, "tags": ["a"], "line": "red"} for row in rows(2)])
    message = refused("--manifest", manifest, "--output", tmp_path / "out", "--partition-by", column)
    assert said in message and not (tmp_path / "out").exists()


def test_partition_by_a_language_that_is_heard(refused, tmp_path, manifest):
    """Fails if folders can be named by what a model detects."""
    message = refused(
        "--manifest", manifest, "--output", tmp_path / "out", "--partition-by", "language", "--language", "auto"
    )
    assert "model's output" in message


# -- dry run


def dry_run(*words: object) -> dict[str, str]:
    done = job(*words, "--dry-run", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path):
    """Fails if a dry run needs the models, writes anything, or its counts are not those of a run."""
    timed = [{**row, "duration": 1800.0, "id": f"timed-{n}"} for n, row in enumerate(rows(4))]
    records = [
        *rows(6),
        *rows(2, with_text=False, prefix="heard"),
        *timed,
        *broken_rows(tmp_path),
        rows(1)[0],
        "not json",
    ]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = dry_run("--manifest", manifest, "--output", tmp_path / "out", "--partition-by", "speaker")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert said["rows new"] == str(6 + 2 + 4 + 5)
    assert said["rows without text"] == "2" and said["rows held by earlier runs"] == "0"
    assert float(said["audio hours known"]) == pytest.approx(2.0 + 1 / 3600, abs=1e-4)
    assert set(said["rows rejected while planning"].split(", ")) == {
        "MALFORMED 1",
        "NOT_ALLOWED 1",
        "UNSUPPORTED_LANGUAGE 1",
    }
    assert (
        "fusion/en UMUTeam/w2v-bert-beto-mean-emotion-en" in said["models"]
        and "asr/es large-v3-turbo" in said["models"]
    )
    assert str(manifest) in said["manifests"] and "cpus" in said["resources"]


@pytest.mark.parametrize("text", [False, True])
def test_a_dry_run_prices_the_run(tmp_path, text):
    """Fails if the price is not hours times rate, or differs with the order of the machines."""
    rows_of = [{"id": str(n), "audio": f"/a/{n}.wav", "duration": 3600.0, "language": "en"} for n in range(40)]
    records = [{**row, "text": "words"} if text else row for row in rows_of]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    words = [
        "--manifest",
        str(manifest),
        "--output",
        str(tmp_path / "out"),
        "--audio-root",
        "/a",
        "--dry-run",
        "--json",
    ]
    done = job(*words, "--hourly-rate", "core=0.5,h200=4", HF_HUB_OFFLINE="1")
    price = json.loads(done.stdout)["price"]
    assert list(price) == ["core", "H200"]
    about, hours = (
        float(each.replace(",", "")) for each in re.match(r"about ([\d.,]+) for ([\d.,]+) h of", price["core"]).groups()
    )
    assert about == pytest.approx(0.5 * hours, rel=1e-2) and hours > 1
    about, least = (float(each.replace(",", "")) for each in re.findall(r"(?:about|at least) ([\d.,]+)", price["H200"]))
    assert about == pytest.approx(3 * least, abs=0.02)
    assert "price" not in json.loads(job(*words, HF_HUB_OFFLINE="1").stdout)


@pytest.mark.parametrize(
    ("rate", "message"), [("h100=3", "no machine is called 'h100'"), ("core", "not a number"), ("L4=-1", "0 or more")]
)
def test_a_price_that_is_none_is_refused(rate, message):
    """Fails if a typing error of a rate prices nothing, or gives a traceback."""
    done = job("--manifest", "m.jsonl", "--output", "out", "--dry-run", "--hourly-rate", rate)
    assert done.returncode == 2 and message in done.stderr


def test_an_output_that_is_a_file_is_refused(tmp_path):
    """Fails if a file in the way of the output gives an error of the system, and the advice to run it again."""
    (tmp_path / "out").write_text("notes")
    manifest = write_manifest(tmp_path / "m.jsonl", rows(1))
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        done = job("--manifest", str(manifest), "--output", str(output), "--dry-run")
        assert done.returncode == 2 and f"{tmp_path / 'out'} is a file" in done.stderr


def test_a_dry_run_of_an_empty_manifest(tmp_path):
    """Fails if nothing to do is an error."""
    (tmp_path / "m.jsonl").write_text("")
    said = dry_run("--manifest", tmp_path / "m.jsonl", "--output", tmp_path / "out")
    assert said["rows new"] == "0" and said["models"] == "none"


def test_nothing_to_do_is_no_failure(tmp_path):
    """Fails if an empty manifest is an error, starts Ray or leaves an output."""
    (tmp_path / "m.jsonl").write_text("")
    done = job("--manifest", tmp_path / "m.jsonl", "--output", tmp_path / "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and "Nothing new" in done.stdout and not (tmp_path / "out").exists()

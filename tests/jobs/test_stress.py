"""The command `stress` on the demo models: killed, resumed, run again, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.models import MODELS
from jobs.stress import main
from pipeline.api import verify
from tests.support.corpus import ROOT
from tests.support.processes import kill_hard, started, wait_until

CLIPS = {"ada-prizes.wav": "joy", "ada-goodbye.flac": "sadness", "ben-ticket.mp3": "anger", "ben-bus.wav": "neutral"}
CONDITIONS = ("clean", "white_noise 20 dB SNR", "white_noise -10 dB SNR", "mu_law 64 kbit/s")
PAGE = "stress.html"


def words_of(folder: Path) -> list[str]:
    return [
        *(str(folder / "m.jsonl"), "--labels", "label", "--output", str(folder / "out"), "--mode", "audio"),
        *("--emotion-model", f"en={MODELS}/audio-en", "--conditions", "white_noise=20,-10", "mu_law"),
        *("--resamples", "100", "--shard-rows", "4", "--emotion-actors", "1", "--json"),
    ]


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, own_ray: None) -> tuple[Path, dict]:
    """A test that was killed after its first shard and started again, and what its second start printed."""
    folder = tmp_path_factory.mktemp("stress")
    rows = [{"id": name, "audio": str(ROOT / "demo/corpus/audio" / name), "label": label, "speaker": name.partition("-")[0]}
            for name, label in CLIPS.items()]  # fmt: skip
    rows.append({"id": "gone", "audio": "gone.wav", "label": "joy", "speaker": "ada"})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "jobs.stress", *words_of(folder)]
    log = folder / "log"
    with started(command, log) as process:
        wait_until(lambda: any((folder / "out/run").rglob("utterances/*.parquet")), process, log)
        kill_hard(process)
    assert not (folder / "out" / "results.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)  # fails where anything but one document is printed


def test_a_killed_test_is_finished_by_the_same_command(tested):
    """Fails if a kill loses, doubles or repeats clips, a rejected row is not counted, or a condition is missing."""
    folder, document = tested
    assert verify(folder / "out" / "run", deep=True).status == "sound"
    assert document["clips"] == 4 and document["rejected_before"] == {"NOT_FOUND": 1}
    assert {(row["condition"], row["level"]) for row in document["results"]} == {
        ("clean", None), ("white_noise", 20.0), ("white_noise", -10.0), ("mu_law", 64.0)
    }  # fmt: skip
    assert {row["clips"] + row["rejected"] + row["no_prediction"] for row in document["results"]} == {4}
    assert document["resample_by"] == "speaker" and document["groups"] == 2


def test_noise_costs_what_the_predictions_say(tested):
    """Fails if strong noise changes no label of this model, or a share of flips is not that of the predictions."""
    folder, document = tested
    rows = pq.read_table(folder / "out" / "predictions.parquet").to_pylist()
    for result in document["results"]:
        same = [row for row in rows if (row["condition"], row["level"]) == (result["condition"], result["level"])]
        assert len(same) == 4
        if result["metric"] == "flips":
            assert result["figure"] == sum(row["flipped"] for row in same) / 4
    assert next(r["figure"] for r in document["results"] if r["level"] == -10) > 0
    assert pq.read_table(folder / "out" / "results.parquet").to_pylist() == document["results"]


def test_run_again_it_reports_the_same_and_annotates_nothing(tested, capsys):
    """Fails if a finished test is run again, or its report depends on anything but the files."""
    folder, document = tested
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "run").rglob("*.parquet")}
    words = [word for word in words_of(folder) if word != "--json"]
    assert main(words) == 0
    lines = capsys.readouterr().out
    assert (
        all(name.split()[0] in lines for name in CONDITIONS)
        and "1 row of the manifest has no clip (NOT_FOUND 1)" in lines
    )
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "run").rglob("*.parquet")} == before
    assert json.loads((folder / "out" / "results.json").read_text(encoding="utf-8")) == document


def test_the_page_is_one_file(tested):
    """Fails if the command writes no page, or one that loads something or lacks a condition."""
    html = (tested[0] / "out" / PAGE).read_text(encoding="utf-8")
    assert html.count("<script") == 1 and "src=" not in html  # the script of all pages
    assert '<section id="white_noise"' in html and '<section id="mu_law"' in html and "NOT_FOUND 1" in html


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seed", "1"], "another value of seed: None, not 1"),
        (["--mode", "mean"], "another value of mode: audio, not mean"),
        (["--labels", "lable"], "--labels lable: the manifest has no such column; did you mean 'label'?"),
        (["--conditions", "opuss"], "there is no condition 'opuss'; did you mean 'opus'"),
        (["--resamples", "-1"], "--resamples must be 0 or more"),
    ],
)
def test_what_cannot_be_tested_is_refused(tested, words, message, capsys):
    """Fails if a wrong option costs a run, or is answered with results of another test."""
    assert main([*words_of(tested[0]), *words]) == 2
    assert message in capsys.readouterr().err

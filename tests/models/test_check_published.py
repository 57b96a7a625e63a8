"""`make check-published` against a loopback hub, which serves the parity checkpoints under the published names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.models.checkpoints.published import EMOTION_MODELS, SENTENCE_ENCODERS
from tests.support.corpus import ROOT
from tests.support.golden import CASES, LONG, PARITY
from tests.support.hub_standin import Repository, serve
from tools import check_published

MODES = ("mean", "text")
GOLDEN = [case for case in CASES if case["mode"] in MODES and case["audio"] not in (LONG, None)]
CLIPS = sorted({(case["case"].partition("-")[0], case["language"]) for case in GOLDEN if case["mode"] == "text"})

TOOLKIT = """
def pipeline(task, *, model, device, top_k="one"):
    assert task == "text-classification" and top_k is None
    return lambda texts: [[{"label": "sad", "score": 0.75}, {"label": "happy", "score": 0.25}] for _ in texts]

def predict_emotion(audio_path, text, model_id, mode, language, device):
    import evaluate
    from datasets import Audio
    evaluate.load("precision")
    if mode == "text":
        outputs = pipeline("text-classification", model=model_id, device=device, return_all_scores=True)(text)[0]
        return {"top_label": outputs[0]["label"], "scores": {each["label"]: each["score"] for each in outputs}}
    return {"top_label": f"{audio_path} {text} {language} {device}", "scores": {"joy": 1.0}}
"""


GOLDEN_TOOLKIT = """
import json
from pathlib import Path

KNOWN = json.loads(Path(__file__).with_name("known.json").read_text())

def pipeline(task, *, model, device, top_k="one"):
    return lambda texts: [[{"label": label, "score": score} for label, score in KNOWN[f"text {model} {texts[0]}"].items()]]

def predict_emotion(audio_path, text, model_id, mode, language, device):
    import evaluate
    if mode == "text":
        outputs = pipeline("text-classification", model=model_id, device=device, return_all_scores=True)(text)[0]
        scores = {each["label"]: each["score"] for each in outputs}
    else:
        scores = KNOWN[f"{mode} {model_id} {Path(audio_path).name} {text}"]
    return {"top_label": max(scores, key=scores.get), "scores": scores}
"""


def installed_toolkit(folder: Path) -> Path:
    """Return the interpreter of an environment whose toolkit gives the golden predictions for exactly their inputs."""
    package = folder / "toolkit" / "speech_emotion"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inference.py").write_text(GOLDEN_TOOLKIT)
    known = {
        " ".join(
            [case["mode"], EMOTION_MODELS[case["language"], case["mode"]]]
            + [Path(case["audio"]).name] * (case["mode"] != "text")
            + [case["text"]]
        ): case["scores"]
        for case in GOLDEN
    }
    (package / "known.json").write_text(json.dumps(known))
    python = folder / "toolkit" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} -P "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def hub(checkpoints) -> Iterator[str]:
    """Address of a hub that serves the models of both modes."""
    folders = {EMOTION_MODELS[language, mode]: f"{mode}-{language}" for mode in MODES for language in ("en", "es")}
    folders |= {name: f"bert-{language}" for language, name in SENTENCE_ENCODERS.items()}
    files = {
        name: {path.name: path.read_bytes() for path in (checkpoints / folder).iterdir()}
        for name, folder in folders.items()
    }
    with serve({name: Repository({"a" * 40: each}, {"main": "a" * 40}) for name, each in files.items()}) as standin:
        yield standin.endpoint


def manifest(folder: Path) -> Path:
    """Write the clips of `CLIPS` as a manifest, with a blank line, as a user's may have."""
    rows = [
        {"id": f"{number}-{case['language']}", "language": case["language"], "audio": str(PARITY / case["audio"])}
        | {"text": case["text"]}
        for number, language in CLIPS
        for case in GOLDEN
        if case["case"] == f"{number}-text-{language}"
    ]
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return path


def predictions(folder: Path, *, more: float) -> Path:
    """Write the toolkit's golden predictions of the clips, as `tools.reference_toolkit` does; `more` is added to each fear."""
    path = folder / "predictions.jsonl"
    rows = [
        {"id": f"{case['case'][:2]}-{case['language']}", "mode": case["mode"], "label": case["label"]}
        | {"scores": {**case["scores"], "fear": case["scores"]["fear"] + more}}
        for case in GOLDEN
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(endpoint: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.check_published", *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **home}, capture_output=True, text=True, timeout=240, check=False
    )


def test_this_project_gives_the_toolkits_predictions(hub, tmp_path):
    """Fails if models come from elsewhere than the hub, the toolkit gets other audio, texts or models, a score is compared with
    another label's, or a difference passes. Only the installation of the toolkit is not run."""
    clips = ["--manifest", str(manifest(tmp_path)), "--clips", *(f"{number}-{language}" for number, language in CLIPS)]
    done = run(hub, tmp_path, *clips, "--mode", *MODES, "--toolkit", str(installed_toolkit(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CLIPS) * len(MODES)} predictions, 0 differ" in done.stdout
    assert "DIFFERS" not in done.stdout
    done = run(hub, tmp_path, *clips, "--mode", "mean", "--predictions", str(predictions(tmp_path, more=0.006)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("DIFFERS") == len(CLIPS)
    (column,) = {tuple(line.split()[6:7]) for line in done.stdout.splitlines() if "DIFFERS" in line}
    assert column == ("6.0e-03",)


@pytest.mark.parametrize(
    ("endpoint", "offline", "message"),
    [("http://127.0.0.1:9", "0", "127.0.0.1:9 does not serve UMUTeam/"), ("http://127.0.0.1:9", "1", "HF_HUB_OFFLINE")],
)
def test_without_a_hub_there_is_one_sentence(tmp_path, endpoint, offline, message):
    """Fails if an unreachable hub gives a traceback, a page of retries, or a status that reads as a comparison."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tools.check_published", "--reachable"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_toolkit_is_asked_for_each_case(tmp_path):
    """Fails if a case's audio, text, mode or language is lost, or the toolkit's training packages must be installed."""
    package = tmp_path / "speech_emotion"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inference.py").write_text(TOOLKIT)
    case = {"id": "c", "mode": "mean", "language": "es", "audio": "a.wav", "text": "hola", "model": "m"}
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps({**case, "mode": mode}) + "\n" for mode in MODES))
    subprocess.run(
        [sys.executable, "tools/reference_toolkit.py", str(tmp_path / "cases.jsonl"), str(tmp_path / "out.jsonl")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, timeout=120,
    )  # fmt: skip
    mean, text = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert mean == {**case, "label": "a.wav hola es cpu", "scores": {"joy": 1.0}}
    assert text == {**case, "mode": "text", "label": "sad", "scores": {"sad": 0.75, "happy": 0.25}}


def test_the_bundled_clips(tmp_path):
    """Fails if a clip is renamed or lost, has no text, or there are fewer than ten; or a missing toolkit gives a traceback."""
    given = check_published.cases(check_published.MANIFEST, check_published.CLIPS, ["mean", "audio"])
    assert len(given) == 20 and all(Path(case["audio"]).is_file() and case["text"] for case in given)
    assert {case["language"] for case in given} == {"en", "es"}
    with pytest.raises(check_published.ConfigError, match=r"is not installed in .* run make check-published"):
        check_published.run_toolkit(given, tmp_path / "bin" / "python")


def test_a_label_outside_the_limits_differs():
    """Fails if equal scores with another label pass, or a score that is no number."""
    same = check_published.Compared("mean", "c", "joy", "joy", {"joy": 1e-5}, 1e-4)
    assert same.agrees
    for changes in ({"ours": "fear"}, {"differences": {"joy": float("nan")}}, {"differences": {"joy": 2e-4}}):
        fields = {name: getattr(same, name) for name in ("mode", "clip", "theirs", "ours", "differences", "limit")}
        assert not check_published.Compared(**{**fields, **changes}).agrees

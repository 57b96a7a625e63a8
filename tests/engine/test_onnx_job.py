"""A job whose texts come from a made-up model of onnx-asr, prepared in an object store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.prepare_models import main as prepare_models
from jobs.verify import main as verify
from pipeline import Annotator
from tests.support.corpus import ROOT, utterances, write_manifest
from tests.support.onnx_models import parakeet
from tests.support.s3_server import S3Server
from tests.support.shared_ray import SharedRay

AUDIO = [
    ROOT / "demo/corpus/audio" / name for name in ("ada-goodbye.flac", "ada-hide.m4a", "ada-prizes.wav", "ben-bus.wav")
]
EMOTION = str(ROOT / "demo/models/text-en")


def test_the_job_from_prepared_models_to_the_audit(
    tmp_path: Path, s3: S3Server, shared_ray: SharedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a worker cannot fetch the model or takes other files, a row has Whisper's figures, the audit refuses a text,
    the same command finds something to do, or an annotator returns other texts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = parakeet(tmp_path / "parakeet")
    spec, models = f"onnx:{folder}", f"s3://{s3.bucket}/onnx-models"
    chosen = ("--mode", "text", "--emotion-model", EMOTION, "--asr-model", spec)
    assert prepare_models(["--output", models, "--language", "en", *chosen]) == 0
    shutil.move(folder, tmp_path / "moved")
    manifest = write_manifest(
        tmp_path / "m.jsonl", [{"id": path.stem, "audio": str(path), "language": "en"} for path in AUDIO]
    )
    command = (manifest, tmp_path / "out", "--models", models, "--mode", "text", "--shard-rows", "2")
    assert spec in shared_ray(*command, "--dry-run").stdout
    shared_ray(*command)
    found = utterances(tmp_path / "out")
    rows = {row["recording_id"]: row for row in found.to_pylist()}
    assert rows.keys() == {path.stem for path in AUDIO}
    assert all(row["text_source"] == "asr" and row["asr_avg_logprob"] is None for row in rows.values())
    assert any(row["text"] for row in rows.values()) and all(row["emotion"] for row in rows.values() if row["text"])
    assert verify([str(tmp_path / "out"), "--deep"]) == 0
    assert "Nothing new" in shared_ray(*command).stdout

    report = json.loads(next((tmp_path / "out").glob("_runs/*/report.json")).read_text())
    assert report["models"]["asr/en"]["location"].startswith(models) and "onnx-asr" in report["versions"]
    annotator = Annotator(mode="text", emotion_model=EMOTION, asr_model=f"onnx:{tmp_path / 'moved'}")
    texts = {each.recording_id: each.text for each in annotator.annotate(
        [{"audio": str(path), "id": path.stem} for path in AUDIO])}  # fmt: skip
    assert texts == {name: row["text"] for name, row in rows.items()}

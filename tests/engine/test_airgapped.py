"""A job on prepared models where there is no network at all but storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support.corpus import ONE_ACTOR, ROOT, utterances
from tests.support.published import ENCODER, FUSION, OLD

pytestmark = pytest.mark.usefixtures("own_ray")

_NAMESPACE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]


def _can_unshare() -> bool:
    try:
        return subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.timeout(700)
@pytest.mark.skipif(not _can_unshare(), reason="this machine lets nobody make a network namespace (unshare --net)")
def test_a_job_without_a_network(tmp_path, shared_ray):
    """Fails if a job on prepared models asks for anything beyond its storage, or computes something else than from the files
    the models were prepared from, or copies a model to its node more than once.
    """
    done = subprocess.run(
        [*_NAMESPACE, sys.executable, "-m", "tests.support.airgapped", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(json.loads(done.stdout)["copies"]) == 3
    found = utterances(tmp_path / "out")
    (report,) = (tmp_path / "out" / "_runs").glob("*/report.json")
    models = json.loads(report.read_text())["models"]
    assert {slot: model["spec"] for slot, model in models.items()} == {
        "fusion/en": FUSION, "sentence_encoder/en": ENCODER, "asr/en": "large-v3-turbo",
    }  # fmt: skip
    assert {model["revision"] for model in models.values()} == {OLD}
    demo = ROOT / "demo" / "models"
    shared_ray(
        tmp_path / "m.jsonl", tmp_path / "local", "--emotion-model", str(demo / "mean-en"), "--sentence-encoder",
        str(demo / "sentence-encoder"), "--asr-model", str(demo / "whisper"), "--device", "cpu", *ONE_ACTOR,
    )  # fmt: skip
    expected = utterances(tmp_path / "local")
    same = ["utterance_id", "text", "label"]
    assert found.select(same) == expected.select(same)
    for name in ("confidence", "fused_embedding"):
        assert np.allclose(found[name].to_pylist(), expected[name].to_pylist(), rtol=0, atol=1e-5), name
    assert found["emotion"].to_pylist() == ["fear", "joy"]

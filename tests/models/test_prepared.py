"""Prepared models as nodes fetch them and jobs choose them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import s3fs

from jobs.prepare_models import main
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.checkpoints.lock import Lock, LockedModel, read_prepared, write_lock
from pipeline.pins import Role
from pipeline.storage.store import open_store
from tests.support.corpus import ROOT
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.pins import named
from tests.support.published import prepared

ENGLISH = ("--language", "en")


FETCH = """
import sys
from pathlib import Path
from pipeline.models.checkpoints.hub import fetch_from_store
print(fetch_from_store(sys.argv[1], Path(sys.argv[2]), expected_sha256=sys.argv[3]))
"""


def test_a_node_fetches_a_model_once(s3, tmp_path):
    """Fails if processes of one node that start at once each download a model, or one of them sees it half-written."""
    uri = f"s3://{s3.bucket}/once"
    assert main(["--output", uri, *ENGLISH, "--mode", "text", "--without-asr",
                 "--emotion-model", str(ROOT / "demo/models/text-en")]) == 0  # fmt: skip
    (model,) = prepared(uri).lock.models.values()
    with fault_proxy(s3.endpoint) as proxy:
        command = [sys.executable, "-c", FETCH, f"{uri}/{model.folder}", str(tmp_path / "cache"), model.sha256]
        environment = {**s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "PATH": "/usr/bin:/bin"}
        nodes = [
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        answers = [process.communicate(timeout=60) for process in nodes]
        assert [process.returncode for process in nodes] == [0] * 4, answers
        assert len({folder for folder, _ in answers}) == 1
        gets = [r.path.rpartition("/")[2] for r in proxy.requests if r.method == "GET" and model.folder in r.path]
    assert sorted(gets) == sorted(model.files)


def test_a_copy_that_is_not_what_the_lock_says_is_not_kept(s3, tmp_path, monkeypatch):
    """Fails if other bytes than the lock's are loaded on a node, or are what the node's next process finds."""
    uri = f"s3://{s3.bucket}/other"
    text = ("--mode", "text", "--without-asr", "--emotion-model", str(ROOT / "demo/models/text-en"))
    main(["--output", uri, *ENGLISH, *text])
    found = prepared(uri)
    ((spec, model),) = found.lock.models.items()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = f"{s3.bucket}/other/{model.folder}/model-00002-of-00002.safetensors"
    content = s3.filesystem().cat_file(weights)
    s3.filesystem().pipe_file(weights, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"expected [0-9a-f]{64}"):
        found.checkpoint(spec)
    assert not list(tmp_path.rglob("*.safetensors"))
    s3.filesystem().pipe_file(weights, content)
    with fault_proxy(s3.endpoint) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        once = [Fault.SHORT_BODY, Fault.FLIP, Fault.INTERNAL]
        proxy.plan = lambda r: once.pop() if once and r.method == "GET" and r.path.endswith(".safetensors") else None
        assert found.checkpoint(spec).sha256 == model.sha256
        assert len(proxy.faults) == 3
    s3fs.S3FileSystem.clear_instance_cache()


# -- which model a job uses


def test_a_job_takes_prepared_models_and_no_others(tmp_path):
    """Fails if a published model is fetched that the folder lacks, a named one is ignored, or a language is guessed."""

    def config(**flags: object):
        return load_config(None, {"manifest": ["m"], "output": "o", "models": str(tmp_path), **flags})

    with pytest.raises(ConfigError, match="no lock file"):
        roles.prepared_models(config())
    chosen = {"fusion/fr": "F", "sentence_encoder/fr": "S"}
    models = {
        spec: LockedModel(repository=None, revision=None, licence=None, folder=spec, sha256="0" * 64, files={})
        for spec in chosen.values()
    }
    write_lock(open_store(str(tmp_path)), Lock(slots={"mean": chosen}, models=models))
    folder = roles.prepared_models(config())
    assert roles.known_languages(config(), folder) == ["fr"]
    assert roles.known_languages(config(mode="text"), folder) == []
    assert named(roles.choose(config(), ["fr"], needs_asr=False, prepared=folder)) == chosen
    assert (
        roles.choose(config(emotion_model="fr=X"), ["fr"], needs_asr=False, prepared=folder)[Role.parse("fusion/fr")]
        == "X"
    )
    with pytest.raises(ConfigError, match=r"no speech recogniser in .* --asr-model fr=X, or prepare one"):
        roles.choose(config(), ["fr"], needs_asr=True, prepared=folder)


OUTSIDE = json.dumps(
    {
        "models": {
            "x": {
                "repository": None,
                "revision": None,
                "licence": None,
                "folder": "../x",
                "sha256": "0" * 64,
                "files": {},
            }
        }
    }
).encode()


@pytest.mark.parametrize(("content", "said"), [(b"{", "JSON"), (b'{"format": 2}', "format"), (OUTSIDE, "folder")])
def test_a_lock_of_another_kind_is_refused(tmp_path, content, said):
    """Fails if a damaged lock, one of a later version, or one that points outside its folder is used."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "000001.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_prepared(str(tmp_path))

"""Models brought into a folder with a lock: from a stand-in hub through the real client, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import s3fs
import torch

from jobs.prepare_models import main
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.checkpoints import hub as hub_files
from pipeline.models.checkpoints.lock import Lock, LockedModel, Prepared, read_prepared, write_lock
from pipeline.models.checkpoints.modes import labels_of
from pipeline.models.checkpoints.weights import load_state_dict
from pipeline.pins import Role
from pipeline.storage.store import LocalStore, open_store
from tests.support import published
from tests.support.corpus import ROOT
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.hub_standin import Hub, serve
from tests.support.pins import named
from tests.support.processes import started, wait_until
from tests.support.published import ASR, ENCODER, FUSION, NEW, OLD

ENGLISH = ("--language", "en")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A stand-in that holds the published English models of mode mean, and nothing in the cache."""
    constants = huggingface_hub.constants
    with serve(published.hub()) as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.endpoint)
        template = standin.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield standin


def prepared(output: Path | str) -> Prepared:
    found = read_prepared(str(output))
    assert found is not None
    return found


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of writing."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def downloads(hub: Hub) -> list[str]:
    return [line for line in hub.requests if line.startswith("GET") and line.endswith((".bin", ".safetensors"))]


def forget_downloads(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hub-cache", ignore_errors=True)


# -- what is stored


def test_the_published_models_are_prepared(hub, tmp_path, capsys):
    """Fails if a job's default models are not resolved, pinned, converted, licensed or listed as they are stored."""
    assert main(["--output", str(tmp_path / "models"), *ENGLISH]) == 0
    said = capsys.readouterr().out
    found = prepared(tmp_path / "models")
    assert found.lock.slots == {
        "mean": {"fusion/en": FUSION, "sentence_encoder/en": ENCODER, "asr/en": "large-v3-turbo"}
    }
    models = found.lock.models
    assert [models[spec].repository for spec in (FUSION, ENCODER, "large-v3-turbo")] == [FUSION, ENCODER, ASR]
    assert {model.revision for model in models.values()} == {OLD}
    licences = {spec: model.licence for spec, model in models.items()}
    assert licences == {FUSION: "other (research-only)", ENCODER: "apache-2.0", "large-v3-turbo": None}
    assert [bool(models[spec].converted) for spec in models] == [spec == FUSION for spec in models]
    assert "pickle to safetensors" in said and "licence not stated" in said and f"at {OLD[:12]}" in said
    stored = {name for name in contents(tmp_path / "models") if not name.startswith("locks/")}
    assert stored == {f"{model.folder}/{name}" for model in models.values() for name in model.files}
    assert not any(line.endswith(".py") for line in hub.requests)
    assert main(["--output", str(tmp_path / "models"), "--verify"]) == 0


def test_a_converted_pickle_holds_the_same_tensors(hub, tmp_path):
    """Fails if the conversion changes a name, a type or a bit, or the pickle is stored beside it."""
    main(["--output", str(tmp_path / "models"), *ENGLISH])
    checkpoint = prepared(tmp_path / "models").checkpoint(FUSION)
    assert checkpoint is not None and not list(checkpoint.directory.glob("*.bin"))
    stored, original = load_state_dict(checkpoint, dtype=None), published.fusion_tensors()
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[n], original[n]) and stored[n].dtype == original[n].dtype for n in original)
    # its config names no classes; that it is the published English model says which they are
    assert labels_of(checkpoint)[0] == "angry"


def test_what_is_no_pickle_is_stored_byte_for_byte(hub, tmp_path):
    """Fails if a prepared model has another sha256 than the same model from the hub, which would split a dataset."""
    main(["--output", str(tmp_path / "models"), *ENGLISH])
    encoder = prepared(tmp_path / "models").lock.models[ENCODER]
    assert encoder.sha256 == hub_files.content_sha256(ROOT / "demo/models/sentence-encoder")


# -- again


def test_again_does_nothing(hub, tmp_path, capsys):
    """Fails if a second run asks the hub, writes anything, or does not say that nothing was to do."""
    main(["--output", str(tmp_path / "models"), *ENGLISH])
    before, asked = contents(tmp_path / "models"), len(hub.requests)
    capsys.readouterr()
    assert main(["--output", str(tmp_path / "models"), *ENGLISH]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert (contents(tmp_path / "models"), len(hub.requests)) == (before, asked)


def test_a_newer_commit_is_taken_when_asked_for(hub, tmp_path, capsys):
    """Fails if a branch that moved changes a prepared folder unasked, --update misses it, or the old lock stops to hold."""
    folder = tmp_path / "models"
    main(["--output", str(folder), *ENGLISH])
    old = prepared(folder)
    repository = hub.repositories[ENCODER]
    config = repository.commits[OLD]["config.json"] + b"\n"
    repository.commits[NEW] = repository.commits[OLD] | {"config.json": config}
    repository.refs["main"] = NEW
    main(["--output", str(folder), *ENGLISH])
    assert prepared(folder) == old
    assert main(["--output", str(folder), *ENGLISH, "--update"]) == 0
    new = prepared(folder)
    assert (new.number, new.lock.models[ENCODER].revision) == (2, NEW)
    assert new.lock.models[FUSION] == old.lock.models[FUSION]
    assert old.checkpoint(ENCODER).sha256 != new.checkpoint(ENCODER).sha256
    shutil.rmtree(folder / new.lock.models[ENCODER].folder)
    repository.refs["main"] = OLD
    capsys.readouterr()
    assert main(["--output", str(folder), *ENGLISH]) == 0  # what is gone comes back, of the locked commit
    assert "Nothing to do" in capsys.readouterr().out
    assert prepared(folder).checkpoint(ENCODER).sha256 == new.lock.models[ENCODER].sha256


def test_another_mode_is_added(hub, tmp_path):
    """Fails if a second selection drops the first, or fetches again what both use."""
    folder, text = tmp_path / "models", ROOT / "demo/models/text-en"
    main(["--output", str(folder), *ENGLISH])
    before = len(downloads(hub))
    assert main(["--output", str(folder), *ENGLISH, "--mode", "text", "--emotion-model", str(text)]) == 0
    lock = prepared(folder).lock
    assert lock.slots["text"] == {"fusion/en": str(text), "asr/en": "large-v3-turbo"}
    assert set(lock.models) == {FUSION, ENCODER, "large-v3-turbo", str(text)}
    assert len(downloads(hub)) == before


def test_two_writers_lose_nothing(tmp_path):
    """Fails if of locks written at once one overwrites another."""

    def write(number: int) -> None:
        model = LockedModel(
            repository=None, revision=None, licence=None, folder=f"m{number}", sha256="0" * 64, files={}
        )
        write_lock(
            open_store(str(tmp_path)), Lock(slots={f"mode{number}": {"s/x": str(number)}}, models={str(number): model})
        )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = prepared(tmp_path)
    assert found.number == 8 and set(found.lock.models) == {str(number) for number in range(8)}


# -- interruptions


def test_no_room_at_any_file_leaves_no_lock(hub, tmp_path, monkeypatch, capsys):
    """Fails if a preparation that stops at any write leaves a lock, or the same command does not go on from there."""
    folder, room = tmp_path / "models", 0
    put, puts = LocalStore.put_if_absent, []

    def bounded(store: LocalStore, key: str, content: bytes) -> bool:
        if len(puts) >= room:
            raise OSError(errno.ENOSPC, "No space left on device", key)
        puts.append(key)
        return put(store, key, content)

    monkeypatch.setattr(LocalStore, "put_if_absent", bounded)
    stopped, stored = 0, []
    while (status := main(["--output", str(folder), *ENGLISH])) != 0:
        said = capsys.readouterr().err
        assert status in (1, 2) and "No space left" in said, said
        assert read_prepared(str(folder)) is None
        stored += puts
        stopped, room = stopped + 1, 4
        puts.clear()
    stored += puts
    assert stopped >= 3
    assert len(stored) == len(set(stored) - {"locks/_probe"}) + stored.count("locks/_probe")  # nothing twice
    assert main(["--output", str(folder), "--verify"]) == 0


def test_a_download_that_breaks_off_is_taken_up(hub, tmp_path):
    """Fails if a connection that ends halfway ends the preparation, or half a file is taken for whole."""
    hub.cut["model.safetensors"] = 1
    assert main(["--output", str(tmp_path / "models"), *ENGLISH]) == 0
    assert len([line for line in downloads(hub) if line.endswith("model.safetensors")]) == 2
    assert main(["--output", str(tmp_path / "models"), "--verify"]) == 0


def test_a_download_that_is_killed_is_begun_anew(hub, tmp_path):
    """Fails if a SIGKILL in the middle of a download leaves a lock, or half a file that the next run takes for whole."""
    folder, cache = tmp_path / "models", tmp_path / "hub-cache"
    hub.held.add("model.safetensors")
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "jobs.prepare_models", "--output", str(folder), *ENGLISH]
    with started(command, tmp_path / "log", environment) as process:
        wait_until(lambda: any(p.endswith("model.safetensors") for p in downloads(hub)), process, tmp_path / "log")
        assert list(cache.rglob("*.incomplete"))
        process.kill()
    hub.held.clear()
    assert read_prepared(str(folder)) is None and not list(cache.rglob("model.safetensors"))
    assert main(["--output", str(folder), *ENGLISH]) == 0
    assert len([line for line in downloads(hub) if line.endswith("model.safetensors")]) == 2
    assert main(["--output", str(folder), "--verify"]) == 0


def test_a_damaged_download_is_refused(hub, tmp_path, capsys):
    """Fails if bytes other than the hub names are stored, or stay in the cache so that no later run can succeed."""
    hub.damaged.add("model.safetensors")
    assert main(["--output", str(tmp_path / "models"), *ENGLISH]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors" in said and "the hub states" in said and "run again" in said
    assert read_prepared(str(tmp_path / "models")) is None
    hub.damaged.clear()
    assert main(["--output", str(tmp_path / "models"), *ENGLISH]) == 0


def test_what_cannot_be_had_says_what_to_do(hub, tmp_path, capsys):
    """Fails if a gated, missing or mistyped model, or a folder nobody may write, is a stack trace or says nothing of use."""

    def refused(*options: str, output: Path = tmp_path / "models") -> str:
        assert main(["--output", str(output), *ENGLISH, *options]) == 2
        return capsys.readouterr().err

    assert "not the revision" in refused("--emotion-model", f"{FUSION}@v9")
    hub.repositories[FUSION].gated = True
    assert "gated: accept its terms and set HF_TOKEN" in refused()
    del hub.repositories[FUSION]
    said = refused()
    assert f"no hub repository {FUSION}" in said and "HF_TOKEN" in said and "--emotion-model en=" in said
    (tmp_path / "file").write_text("")
    asked = len(hub.requests)
    assert str(tmp_path / "file") in refused(output=tmp_path / "file")
    assert len(hub.requests) == asked
    assert "'--fusion-modle'" in subprocess.run(
        [sys.executable, "-m", "jobs.prepare_models", "--output", "x", "--fusion-modle", "x"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stderr  # fmt: skip


# -- on the nodes


def test_a_damaged_folder_is_named(hub, tmp_path, capsys):
    """Fails if a job loads what the lock does not name, or --verify passes over a file that is damaged or gone."""
    folder = tmp_path / "models"
    main(["--output", str(folder), *ENGLISH])
    found = prepared(folder)
    weights = folder / found.lock.models[ENCODER].folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / found.lock.models[FUSION].folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"--verify names the broken files"):
        found.checkpoint(ENCODER)
    assert main(["--output", str(folder), "--verify"]) == 1
    said = capsys.readouterr().out
    assert str(weights.relative_to(folder)) in said and "config.json: gone" in said and "2 of" in said
    weights.write_bytes(content[:-1])
    assert main(["--output", str(folder), *ENGLISH]) == 1
    assert "delete it and run the same command again" in capsys.readouterr().err


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
    with pytest.raises(ConfigError, match="was expected"):
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
    with pytest.raises(ConfigError, match=r"no speech recogniser is in .* --asr-model fr=X, or prepare one"):
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

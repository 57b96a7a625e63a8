"""Models brought into a folder with a lock: from a stand-in hub through the real client, whatever happens on the way."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from jobs.prepare_models import main
from pipeline.errors import ConfigError
from pipeline.models.checkpoints import hub as hub_files
from pipeline.models.checkpoints.lock import Lock, LockedModel, read_prepared, write_lock
from pipeline.models.checkpoints.modes import labels_of
from pipeline.models.checkpoints.weights import load_state_dict
from pipeline.storage.store import LocalStore, open_store
from tests.support import published
from tests.support.corpus import ROOT
from tests.support.hub_standin import Hub, serve
from tests.support.processes import started, wait_until
from tests.support.published import ASR, ENCODER, FUSION, NEW, OLD, prepared

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

    assert "but the revision does not" in refused("--emotion-model", f"{FUSION}@v9")
    hub.repositories[FUSION].gated = True
    assert "gated: accept its terms and set HF_TOKEN" in refused()
    del hub.repositories[FUSION]
    said = refused()
    assert (
        f"the hub repository {FUSION} does not exist" in said and "HF_TOKEN" in said and "--emotion-model en=" in said
    )
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

"""Checkpoints that are elsewhere: in an object store or on a hub, fetched once, pinned, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.checkpoints import hub
from pipeline.models.checkpoints.weights import (
    Checkpoint,
    resolve,
)
from tests.models.test_weights import linear, written
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.hub_standin import Repository, serve
from tests.support.processes import until

ROOT = Path(__file__).parents[2]
OLD, NEW = "a" * 40, "b" * 40


# --- object stores


@pytest.fixture
def store(tmp_path):
    """A folder in fsspec's memory store with a checkpoint, and what writes it."""
    import fsspec

    memory = fsspec.filesystem("memory")

    def upload(state: dict[str, torch.Tensor]) -> None:
        written(tmp_path / "source", state)
        for file in (tmp_path / "source").iterdir():
            memory.pipe(f"/models/x/{file.name}", file.read_bytes())
        memory.pipe("/models/x/README.md", b"not fetched")

    upload(linear().state_dict())
    yield upload
    memory.rm("/models", recursive=True)


def test_an_object_store_is_copied_once(store, tmp_path, monkeypatch):
    """Fails if each process of a node downloads, a changed object is served from the old copy, or extras are copied."""
    copies: list[str] = []
    copy = hub._copy
    monkeypatch.setattr(hub, "_copy", lambda uri, *rest: (copies.append(uri), copy(uri, *rest)))
    cache = tmp_path / "cache"
    found: list[Checkpoint] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve("memory://models/x", cache_dir=cache))) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1
    assert len(set(found)) == 1
    assert sorted(path.name for path in found[0].directory.iterdir()) == ["config.json", "model.safetensors"]
    store({name: tensor + 1 for name, tensor in linear().state_dict().items()})
    changed = resolve("memory://models/x/", cache_dir=cache)
    assert len(copies) == 2
    assert changed.sha256 != found[0].sha256
    assert found[0].directory.is_dir()


def test_an_object_store_that_is_cut_off_leaves_nothing(store, tmp_path, monkeypatch):
    """Fails if half a download is taken for a checkpoint the next time."""

    def broken(uri: str, shown: str, listing: object, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise ConfigError("connection reset")

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_copy", broken)
        with pytest.raises(ConfigError, match="connection reset"):
            resolve("memory://models/x", cache_dir=cache)
    assert [path.suffix for path in (cache / "checkpoints").iterdir()] == [".lock"]
    assert resolve("memory://models/x", cache_dir=cache).sha256


def test_an_object_store_without_the_folder(tmp_path):
    """Fails if a mistyped URI is a stack trace, or its secrets are in the message."""
    with pytest.raises(ConfigError, match="cannot list memory://models/absent"):
        resolve("memory://models/absent", cache_dir=tmp_path)


def test_weights_from_s3(s3, checkpoints, tmp_path):
    """Fails on a real S3 protocol where the memory store hides it: listings, etags, downloads."""
    from pipeline.storage.filesystem import resolve as resolve_uri

    uri = f"s3://{s3.bucket}/models/text-en" if hasattr(s3, "bucket") else "s3://weights/models/text-en"
    filesystem, path = resolve_uri(uri)
    filesystem.makedirs(path.split("/")[0], exist_ok=True)
    for file in (checkpoints / "text-en").iterdir():
        filesystem.put_file(str(file), f"{path}/{file.name}")
    assert resolve(uri, cache_dir=tmp_path).sha256 == resolve(str(checkpoints / "text-en")).sha256


# --- the hub

PROGRAM = """
import json, sys
from pathlib import Path
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import resolve
found = []
for spec in sys.argv[2:]:
    try:
        checkpoint = resolve(spec, cache_dir=Path(sys.argv[1]))
        names = sorted(path.name for path in checkpoint.directory.iterdir())
        found.append([checkpoint.revision, checkpoint.sha256, names])
    except ConfigError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def environment(cache: Path, endpoint: str) -> dict[str, str]:
    """Of a new process: huggingface_hub reads HF_ENDPOINT when it is imported."""
    return {
        "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(cache / "home"), "HOME": str(cache), "PATH": "/usr/bin:/bin",
    }  # fmt: skip


def in_a_process(cache: Path, specs: list[str], *, endpoint: str, offline: bool = False) -> list:
    """`resolve` in a new process."""
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cache), *specs],
        env={**environment(cache, endpoint), "HF_HUB_OFFLINE": str(int(offline))},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


@pytest.fixture
def repository(checkpoints) -> Repository:
    files = {path.name: path.read_bytes() for path in (checkpoints / "text-en").iterdir()}
    files |= {"pytorch_model.bin": b"the same again", "README.md": b"#", "modeling_evil.py": b"raise SystemExit"}
    newer = files | {"config.json": files["config.json"] + b"\n"}
    return Repository({OLD: files, NEW: newer}, {"main": NEW, "v1": OLD})


def test_the_hub_by_branch_tag_and_commit(repository, checkpoints, tmp_path):
    """Fails if a revision is not what is loaded or recorded, too much is fetched, or a pinned commit asks again."""
    local = resolve(str(checkpoints / "text-en"))
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    with serve({"org/name": repository}) as standin:
        specs = ["org/name", "org/name@v1", f"org/name@{OLD}"]
        newest, tagged, pinned = in_a_process(tmp_path, specs, endpoint=standin.endpoint)
        assert newest[0] == NEW
        assert newest[1] != local.sha256
        assert tagged == pinned == [OLD, local.sha256, wanted]
        assert not any("pytorch_model.bin" in line or ".py" in line for line in standin.requests)
        before = len(standin.requests)
        assert in_a_process(tmp_path, [f"org/name@{NEW}"], endpoint=standin.endpoint) == [newest]
        assert len(standin.requests) == before
        offline = in_a_process(
            tmp_path, ["org/name", "org/name@v1", "org/other"], endpoint=standin.endpoint, offline=True
        )
        assert len(standin.requests) == before
    assert offline[:2] == [newest, tagged]
    assert "HF_HUB_OFFLINE" in offline[2]
    assert "local directory" in offline[2]


def test_the_hub_says_no(repository, tmp_path):
    """Fails if a wrong id, revision or network is a page of the hub client's, or an old copy is served silently."""
    with serve({"org/name": repository}) as standin:
        specs = ["org/nothing", "org/name@v9", "UMUTeam/w2v-bert-emotion-e", "org/name", "bad--..id/x"]
        absent, revision, near, fetched, bad = in_a_process(tmp_path, specs, endpoint=standin.endpoint)
        endpoint = standin.endpoint
    assert "the hub repository org/nothing does not exist" in absent
    assert "but the revision does not: org/name@v9" in revision
    assert "did you mean 'UMUTeam/w2v-bert-emotion-e" in near
    assert "is not a hub id" in bad
    (gone,) = in_a_process(tmp_path, ["org/name"], endpoint=endpoint)
    assert fetched[0] == NEW
    assert "cannot download org/name from the hub" in gone
    assert "object-store URI" in gone


# --- processes of one node at once

FETCH = """
import sys
from pathlib import Path
from pipeline.models.checkpoints import hub
where, cache = sys.argv[1], Path(sys.argv[2])
print(hub.fetch_from_store(where, cache) if "://" in where else hub.fetch_from_hub(where, sys.argv[3], cache)[0])
"""


@dataclass
class Source:
    """Where the processes fetch from: it stops in the middle of the first answer with weights.

    Attributes:
        asked: how many processes have asked so far what there is.
        downloads: how many times weights were asked for.
    """

    arguments: list[str]
    environment: dict[str, str]
    asked: Callable[[], int]
    downloads: Callable[[], int]
    go_on: Callable[[], None]


@pytest.fixture(params=["hub", "store"])
def source(request, repository, s3, checkpoints, tmp_path) -> Iterator[Source]:
    with ExitStack() as stack:
        if request.param == "hub":
            standin = stack.enter_context(serve({"org/name": repository}))
            standin.held.add("model.safetensors")
            file = f"/org/name/resolve/{OLD}/model.safetensors"
            yield Source(
                ["org/name", str(tmp_path), OLD],
                environment(tmp_path, standin.endpoint),
                asked=lambda: standin.requests.count(f"HEAD {file}"),
                downloads=lambda: standin.requests.count(f"GET {file}"),
                go_on=standin.held.clear,
            )
            return
        files, folder = s3.filesystem(), f"{s3.bucket}/{tmp_path.name}"
        files.put_file(str(checkpoints / "text-en" / "config.json"), f"{folder}/config.json")
        files.put_file(str(checkpoints / "text-en" / "model.safetensors"), f"{folder}/model.safetensors")
        proxy = stack.enter_context(fault_proxy(s3.endpoint))
        stalls = [Fault.STALL]
        proxy.plan = lambda r: (
            stalls.pop() if stalls and r.path.endswith(".safetensors") and r.method == "GET" else None
        )
        yield Source(
            [f"s3://{folder}", str(tmp_path)],
            {**s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "PATH": "/usr/bin:/bin"},
            asked=lambda: sum("list-type" in r.query for r in proxy.requests),
            downloads=lambda: sum(r.method == "GET" and r.path.endswith(".safetensors") for r in proxy.requests),
            go_on=lambda: None,
        )


def test_another_process_takes_over_from_one_that_is_killed(source, checkpoints, tmp_path):
    """Fails if of processes that fetch a model at once more than one does, one sees half of it, or those that wait for one
    that is killed in the middle wait for ever.
    """

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FETCH, *source.arguments]
        return subprocess.Popen(command, cwd=ROOT, env=source.environment, stdout=subprocess.PIPE, text=True)

    with ExitStack() as stack:
        first = stack.enter_context(start())
        until(lambda: source.downloads() == 1)
        asked = source.asked()
        others = [stack.enter_context(start()) for _ in range(3)]
        until(lambda: source.asked() >= asked + 3)
        assert source.downloads() == 1
        first.kill()
        source.go_on()
        answers = {process.communicate(timeout=60)[0].strip() for process in others}
        assert [process.returncode for process in others] == [0] * 3
    (folder,) = answers
    theirs, ours = Path(folder) / "model.safetensors", checkpoints / "text-en" / "model.safetensors"
    assert theirs.read_bytes() == ours.read_bytes()
    assert source.downloads() == 2

"""Data sets of the Hugging Face hub as manifests, from a stand-in: pinned, listed, planned and read by range."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pytest
from huggingface_hub import constants

from pipeline.errors import ConfigError, Reason, RejectedRow
from pipeline.manifest.read import derived_id, expand
from pipeline.storage import retry, slices
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch
from pipeline.storage.hub import pinned
from pipeline.storage.on_disk import fetched_to_disk
from tests.support.cases import case
from tests.support.containers import hub_parquet, tar_bytes
from tests.support.hub_standin import Hub, Repository, serve
from tests.support.manifests import read

OLD, NEW = "a" * 40, "b" * 40
CONTENTS = [os.urandom(30_000 + n) for n in range(6)]
SHARDS = {
    f"data/train-0000{n}-of-00002.parquet": hub_parquet(
        None, CONTENTS[3 * n : 3 * n + 3], text=pa.array([f"t{3 * n + k}" for k in range(3)])
    )
    for n in range(2)
}
FILES = {
    "README.md": b"---\n---",
    **SHARDS,
    "tars/a.tar": tar_bytes({"a.wav": CONTENTS[0], "a.txt": b"x"}),
    "audio/ü#.wav": b"RIFF",
}


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """A stand-in with one data set; its branch `main` and `refs/convert/parquet` name commits."""
    refs = {"main": OLD, "refs/convert/parquet": NEW}
    repository = Repository({OLD: FILES, NEW: {"default/0.parquet": next(iter(SHARDS.values()))}}, refs)
    with serve({"datasets/org/speech": repository, "datasets/org/gated": Repository({}, {}, gated=True)}) as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(retry, "BUDGET_S", 0.3)
        slices._slices.clear()
        yield standin


def refusal(uri: str) -> Reason:
    with pytest.raises(RejectedRow) as caught:
        fetch(uri, max_bytes=10**6)
    return caught.value.reason


def test_a_data_set_is_a_folder_of_manifests(hub):
    """Fails if a revision is not pinned to its commit, a shard is left out, or a row's audio or text is another's."""
    manifests = expand(["hf://datasets/org/speech"])
    assert manifests == [f"hf://datasets/org/speech@{OLD}/{name}" for name in SHARDS]
    audio, texts, ids = [], [], []
    for manifest in manifests:
        rows, rejects = read(manifest)
        assert not rejects
        audio += rows["audio"].to_pylist()
        texts += rows["text"].to_pylist()
        ids += rows["recording_id"].to_pylist()
    assert texts == [f"t{n}" for n in range(6)] and all(OLD in uri for uri in audio)
    AudioRoots.parse((), manifests).check(audio[0])
    del hub.requests[:]
    assert [fetch(uri, max_bytes=10**6) for uri in audio] == CONTENTS
    assert len(hub.requests) <= 8 and all("/resolve/" in line for line in hub.requests)
    hub.repositories["datasets/org/speech"].commits[NEW] = FILES
    hub.repositories["datasets/org/speech"].refs["main"] = NEW
    assert [read(uri)[0]["recording_id"].to_pylist() for uri in expand(["hf://datasets/org/speech/data"])] == [
        ids[:3],
        ids[3:],
    ]


def test_ids_of_files_do_not_depend_on_the_commit(hub):
    """Fails if a folder of audio, or files that a manifest names, cannot be read, or are new rows after each commit."""
    files = {"a.wav": b"RIFF", "b/c.flac": b"fLaC", ".gitattributes": b""}
    lines = b'{"audio": "a.wav"}\n{"audio": "hf://datasets/org/other@v1/x.wav"}\n'
    repository = Repository({OLD: files, NEW: files}, {"main": OLD})
    hub.repositories |= {
        "datasets/org/audio": repository,
        "datasets/org/lines": Repository({c: {"m.jsonl": lines} for c in (OLD, NEW)}, repository.refs),
    }
    seen = []
    for commit in (OLD, NEW):
        repository.refs["main"] = commit
        tables = [read(expand([f"hf://datasets/org/{name}"])[0])[0] for name in ("audio", "lines")]
        audio = [uri for table in tables for uri in table["audio"].to_pylist()]
        folder = f"hf://datasets/org/audio@{commit}"
        assert audio[:2] == [f"{folder}/a.wav", f"{folder}/b/c.flac"] and "@v1" in audio[3]
        seen.append([name for table in tables for name in table["recording_id"].to_pylist()])
    assert seen[0] == seen[1] and seen[0][3] == derived_id("hf://datasets/org/other@v1/x.wav", None, None, None)


def test_what_may_be_named(hub):
    """Fails if a folder, glob, file, tar or other branch of a data set is not found, or a file of it is not read."""
    for uri, expected in [
        ("hf://datasets/org/speech/data/train-0000*", [f"@{OLD}/{name}" for name in SHARDS]),
        (f"hf://datasets/org/speech@{OLD}/data/train-00001-of-00002.parquet", [f"@{OLD}/{list(SHARDS)[1]}"]),
        ("hf://datasets/org/speech@refs/convert/parquet/default", [f"@{NEW}/default/0.parquet"]),
        ("hf://datasets/org/speech@refs%2Fconvert%2Fparquet", [f"@{NEW}/default/0.parquet"]),
        ("hf://datasets/org/speech/tars", [f"@{OLD}/tars/a.tar"]),
    ]:
        with case(uri):
            assert expand([uri]) == [f"hf://datasets/org/speech{name}" for name in expected]
    rows, _ = read(f"hf://datasets/org/speech@{OLD}/tars/a.tar")
    assert rows["text"].to_pylist() == ["x"] and fetch(rows["audio"][0].as_py(), max_bytes=10**6) == CONTENTS[0]
    with fetched_to_disk(f"hf://datasets/org/speech@{OLD}/audio/ü#.wav", max_bytes=9) as file:
        assert file.read() == fetch(f"hf://datasets/org/speech@{OLD}/audio/ü#.wav", max_bytes=9) == b"RIFF"
    assert pinned("s3://b/x") == "s3://b/x" and pinned(f"hf://datasets/o/d@{OLD}/x") == f"hf://datasets/o/d@{OLD}/x"


def test_what_fails_is_named(hub, monkeypatch):
    """Fails if an unknown or closed data set, a missing file or a silent hub ends in a traceback or another reason."""
    for uri, words in [
        ("hf://datasets/org/other", "no such dataset, or HF_TOKEN"), ("hf://datasets/org/gated/x", "HF_TOKEN"),
        ("hf://org/speech", "begins with hf://datasets/ORG/NAME"),
        ("hf://datasets/org/speech@v9/data", "no such revision"), ("hf://datasets/org/speech/dat", "does not exist"),
    ]:  # fmt: skip
        with case(uri), pytest.raises(ConfigError, match=words):
            expand([uri])
    assert refusal(f"hf://datasets/org/speech@{OLD}/none.wav") is Reason.NOT_FOUND
    assert refusal(f"hf://datasets/org/gated@{OLD}/a.wav") is Reason.FORBIDDEN
    hub.cut["ü#.wav"] = 9
    assert refusal(f"hf://datasets/org/speech@{OLD}/audio/ü#.wav") is Reason.FETCH_FAILED
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal(f"hf://datasets/org/speech@{OLD}/a.wav") is Reason.FETCH_FAILED
    with pytest.raises(ConfigError, match="did not answer"):
        expand(["hf://datasets/org/speech"])

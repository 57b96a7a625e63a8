"""Objects whose names hold `?` and `#`: each is read as itself, and its rows name it as it is."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import pipeline.engine.run as driver_module
import pipeline.manifest.rejects
import pipeline.shard.commit
from pipeline.config import load_config
from pipeline.dataset.verify.audit import audit
from pipeline.manifest.read import expand
from pipeline.storage.fetch import fetch
from pipeline.storage.store import open_store
from tests.support.manifests import jsonl, read
from tests.support.nights import quick
from tests.support.s3_server import S3Server

__all__ = ["quick"]

KEYS = ["q?0.wav", "q?1.wav", "q?", "q", "q#0.wav", "q#1.wav", "q?a=1&b=2.wav", "q?a=1&b=3.wav", "d?/q.wav", "e?/q.wav",
        "q%3F0.wav", "q??0.wav", "q?0#1.wav"]  # fmt: skip


def generated() -> list[str]:
    """Names of characters that mean something in URLs, from a fixed seed."""
    dice = random.Random(16)
    return sorted({"g" + "".join(dice.choices("?#&=%+ ;@~ab", k=8)) + ".wav" for _ in range(30)})


def run(folder: Path, root: str, names: list[str], output: str) -> list[dict[str, object]]:
    records = [{"id": f"r{n}", "audio": f"{root}/{name}", "text": "t"} for n, name in enumerate(names)]
    records.append({"id": "bad", "audio": f"{root}/bad?0.wav", "text": "t", "offset": -1})
    options = {
        "manifest": str(jsonl(folder / "m.jsonl", *records)),
        "output": output,
        "audio_root": root,
        "embeddings": "audio",
    }
    driver_module.Driver(load_config(None, options), io.StringIO()).run()
    rows: list[dict[str, object]] = (
        ds.dataset(f"{output}/utterances").to_table(columns=["recording_id", "audio"]).to_pylist()
    )
    return rows


@pytest.mark.parametrize("root", ["s3://corpus/question", "gs://bucket", "LOCAL"])
def test_an_s3_key_with_a_question_mark_keeps_what_follows(root, quick, tmp_path) -> None:
    """Fails if `audio` ends at a `?` or `#` that is part of an object's name: several objects then share one value."""
    root, names = root.replace("LOCAL", str(tmp_path / "audio")), KEYS + generated()
    rows = run(tmp_path, root, names, str(tmp_path / "out"))
    rejected = ("r4", "r7")  # as `recognised` has it
    assert {row["recording_id"]: row["audio"] for row in rows} == {
        f"r{n}": f"{root}/{name}" for n, name in enumerate(names) if f"r{n}" not in rejected
    }
    rejects = pq.read_table(tmp_path / "out/rejects/000001.parquet").to_pylist()
    assert {row["recording_id"]: row["audio"] for row in rejects} == {
        "r4": f"{root}/{names[4]}", "r7": f"{root}/{names[7]}", "bad": f"{root}/bad?0.wav"
    }  # fmt: skip
    assert audit(open_store(str(tmp_path / "out")), deep=True).status == "sound"


def test_outputs_of_before_stay_sound(quick, tmp_path, monkeypatch) -> None:
    """Fails if an output whose `audio` was cut at its `?`, as earlier versions wrote it, is called damaged."""
    for module in (pipeline.shard.commit, pipeline.manifest.rejects):
        monkeypatch.setattr(module, "without_query", lambda uri: uri.partition("?")[0])
    rows = run(tmp_path, "s3://bucket", KEYS, str(tmp_path / "out"))
    assert {"s3://bucket/q"} < {row["audio"] for row in rows}
    assert audit(open_store(str(tmp_path / "out")), deep=True).status == "sound"


def test_objects_are_read_by_their_whole_names(s3: S3Server, tmp_path) -> None:
    """Fails if an object is fetched, or a manifest is opened, under less than its whole name."""
    files = s3.filesystem()
    for name in KEYS:
        files.pipe_file(f"{s3.bucket}/question/{name}", name.encode())
    assert [fetch(f"s3://{s3.bucket}/question/{name}", max_bytes=100).decode() for name in KEYS] == KEYS
    for n in range(2):
        content = f'{{"id": "m{n}", "audio": "{n}.wav"}}\n'.encode()
        files.pipe_file(f"{s3.bucket}/manifests/m?{n}.jsonl", content)
    for n, uri in enumerate(expand([f"s3://{s3.bucket}/manifests/"])):
        rows, _ = read(uri)
        (row,) = rows.to_pylist()
        assert (row["recording_id"], row["manifest"]) == (f"m{n}", f"s3://{s3.bucket}/manifests/m?{n}.jsonl")

"""Tokens in URLs of manifests, rows and options: they open what they name, and only the rows of a plan may keep them."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.engine.run as driver_module
from jobs import annotate, report
from pipeline.config import load_config
from pipeline.dataset.verify.audit import audit
from pipeline.storage.store import open_store
from tests.support.http_host import http_host, reply
from tests.support.nights import quick

__all__ = ["quick"]

CANARY = "CANARYofNobody"
ROWS = [
    {"id": "good", "audio": "HOST/a/x.wav?X-Amz-Signature=CANARYofNobody", "text": "t"},
    {"id": "good-relative", "audio": "a/y.wav?k=CANARYofNobody", "text": "t"},
    {"id": "bad-offset", "audio": "HOST/a/x.wav?X-Amz-Signature=CANARYofNobody", "text": "t", "offset": -1},
    {"id": "bad-channel", "audio": "a/x.wav?X-Amz-Signature=CANARYofNobody", "text": "t", "channel": 0.5},
    {"id": "bad-bare", "audio": "a/x.wav?CANARYofNobody", "text": "t", "channel": 0.5},
    {"id": "bad-fragment", "audio": "a/x.wav#CANARYofNobody", "text": "t", "duration": "x"},
    {"id": "bad-user", "audio": "//u:CANARYofNobody@h/x.wav", "text": "t", "channel": 0.5},
    {"id": "outside", "audio": "https://u:CANARYofNobody@example.org/x.wav?CANARYofNobody", "text": "t"},
    {"id": "control", "audio": "a/x\t.wav?CANARYofNobody", "text": "t"},
    {"id": "scheme", "audio": "gopher://h/x.wav?CANARYofNobody", "text": "t"},
    {"id": "chain", "audio": "zip://x::HOST/x.zip?CANARYofNobody", "text": "t"},
    {"id": "twice", "audio": "a/1.wav?k=CANARYofNobody", "text": "one"},
    {"id": "twice", "audio": "a/2.wav?k=CANARYofNobody", "text": "two"},
]
BROKEN = ['{"id": "cut", "audio": "HOST/x.wav?k=CANARYofNobody', '{"id": "cut2", "audio": "a/x.wav?CANARYofNobody", ']


def _jsonl(host: str) -> bytes:
    return "\n".join([*map(json.dumps, ROWS), *BROKEN, ""]).replace("HOST", host).encode()


def _csv(host: str) -> bytes:
    lines = [",".join(json.dumps(row.get(name, ""))[:-1].lstrip('"') if name != "audio" else str(row[name])
                      for name in ("id", "audio", "text", "offset", "channel")) for row in ROWS[:3]]  # fmt: skip
    cells = ["id,audio,text,offset,channel", *lines, "many,HOST/x.wav?k=CANARYofNobody,a,1,2,3,4"]
    return "\n".join([*cells, ""]).replace("HOST", host).encode()


def _parquet(host: str) -> bytes:
    rows = [
        {**row, "offset": row.get("offset"), "channel": row.get("channel")}
        for row in ROWS
        if row.get("duration") is None
    ]
    table = pa.Table.from_pylist([{**row, "audio": str(row["audio"]).replace("HOST", host)} for row in rows])
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


@pytest.fixture
def host() -> Iterator[str]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        address = f"http://127.0.0.1:{request.server.server_port}"
        makers = {"m.jsonl": _jsonl, "m.csv": _csv, "m.parquet": _parquet}
        name = request.path.partition("?")[0].strip("/")
        if name in makers:
            reply(request, makers[name](address))
        elif name == "turned":
            reply(request, b"", 302, Location=f"/other?token={CANARY}")
        else:
            reply(request, b"", 404)

    with http_host(answer) as address:
        yield address


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_tokens_are_in_the_shard_files_of_the_plan_alone(host, form, quick, tmp_path, capsys) -> None:
    """Fails if report.json, plan.json, rejects, the page, the utterances or what is printed has a query or a password."""
    printed = io.StringIO()
    options = {"manifest": [f"{host}/m.{form}?token={CANARY}"], "output": str(tmp_path / "out"), "audio_root": [f"{host}/a"],
               "embeddings": "audio"}  # fmt: skip
    driver = driver_module.Driver(load_config(None, options), printed)
    described = driver.describe()
    assert described["manifests"] == [f"{host}/m.{form}"]
    (done,) = driver.run()
    assert done["manifests"] == [f"{host}/m.{form}"] and done["rejected"] > 0
    assert report.main([str(tmp_path / "out")]) == 0
    shown = printed.getvalue() + str(described) + capsys.readouterr().out
    found = {"printed"} if CANARY in shown else set()
    for file in (tmp_path / "out").rglob("*"):
        if file.suffix == ".parquet":
            content = str(pq.read_table(file).to_pydict()) + str(pq.read_metadata(file).metadata)
        else:
            content = file.read_text() if file.is_file() else ""
        if CANARY in content:
            found.add("shard" if "shards" in file.parts and not file.stem.endswith("rejects") else str(file))
    assert found == {"shard"}, found
    rejects = pq.read_table(tmp_path / "out/rejects/000001.parquet").to_pylist()
    audio = {row["recording_id"]: row["audio"] for row in rejects}
    assert audio["bad-offset"] in (f"{host}/a/x.wav", "a/x.wav")
    if form != "csv":
        assert (audio["bad-channel"], audio["bad-bare"], audio["bad-user"]) == ("a/x.wav", "a/x.wav", "//h/x.wav")
    assert not driver_module.Driver(load_config(None, options), printed).run(), (
        "rejected lines are logged a second time"
    )
    assert audit(open_store(str(tmp_path / "out")), deep=True).status == "sound"


def test_an_output_of_before_is_not_extended_by_its_own_rejects(host, quick, tmp_path, monkeypatch) -> None:
    """Fails if rejects that an earlier version logged with their queries are logged again without, or are called unsound."""
    options = {"manifest": [f"{host}/m.jsonl?token={CANARY}"], "output": str(tmp_path / "out"), "audio_root": [f"{host}/a"],
               "embeddings": "audio"}  # fmt: skip
    with monkeypatch.context() as before:
        for name in ("pipeline.manifest.staging.without_secrets", "pipeline.dataset.publish.without_secrets"):
            before.setattr(name, lambda rejects: rejects)
        (done,) = driver_module.Driver(load_config(None, options), io.StringIO()).run()
    assert CANARY in str(pq.read_table(tmp_path / "out/rejects/000001.parquet")["raw"].to_pylist())
    assert done["rejected"] > 0
    assert not driver_module.Driver(load_config(None, options), io.StringIO()).run()
    assert audit(open_store(str(tmp_path / "out")), deep=True).status == "sound"


OPTIONS: dict[str, Callable[[Path], list[str]]] = {
    "config that is not there": lambda _: ["--config", f"http://u:{CANARY}@127.0.0.1:1/c.yaml?token={CANARY}"],
    "config of unknown form": lambda _: ["--config", f"s9://u:{CANARY}@h/c.yaml?token={CANARY}"],
    "redirected config": lambda _: ["--config", f"HOST/turned?token={CANARY}"],
    "broken YAML": lambda folder: ["--config", _put(folder, f"manifest: http://h/m?token={CANARY}\n  b: [")],
    "unknown key": lambda folder: ["--config", _put(folder, "manifst: x")],
    "a list": lambda folder: ["--config", _put(folder, f"- http://h/m?token={CANARY}")],
    "not strings": lambda folder: [
        "--config",
        _put(folder, f"emotion_model: [{{en: 'http://u:{CANARY}@h/m?k={CANARY}'}}]"),
    ],
    "calibration": lambda _: ["--calibration", f"http://u:{CANARY}@127.0.0.1:1/c.json?token={CANARY}"],
    "broken calibration": lambda folder: ["--calibration", _put(folder, f'{{"http://h/m?token={CANARY}')],
    "manifest": lambda _: ["--manifest", f"HOST/gone.jsonl?token={CANARY}"],
    "unreachable manifest": lambda _: ["--manifest", f"http://u:{CANARY}@127.0.0.1:1/m.jsonl?token={CANARY}"],
    "redirected manifest": lambda _: ["--manifest", f"HOST/turned?token={CANARY}"],
    "chained manifest": lambda _: ["--manifest", f"simplecache::http://h/m?{CANARY}"],
    "manifest of unknown scheme": lambda _: ["--manifest", f"s9://u:{CANARY}@h/m?token={CANARY}"],
    "output": lambda _: ["--output", f"s9://u:{CANARY}@h/m?token={CANARY}"],
    "http output": lambda _: ["--output", f"http://u:{CANARY}@127.0.0.1:1/out?token={CANARY}"],
    "models": lambda _: ["--models", f"http://u:{CANARY}@127.0.0.1:1/models?token={CANARY}"],
    "audio root": lambda _: ["--audio-root", f"https://u:{CANARY}@h/a?token={CANARY}"],
    "number": lambda _: ["--beam-size", f"https://h/a?token={CANARY}"],
    "unknown option": lambda _: [f"--manfest=https://h/a?token={CANARY}"],
    "stray word": lambda _: [f"https://h/a?token={CANARY}"],
}


def _put(folder: Path, content: str) -> str:
    (folder / "file.yaml").write_text(content)
    return str(folder / "file.yaml")


@pytest.mark.parametrize("kind", OPTIONS)
def test_messages_about_options(host, kind, tmp_path, capsys, monkeypatch) -> None:
    """Fails if the message about an option that cannot be used quotes its token."""
    monkeypatch.setattr("pipeline.storage.retry.BUDGET_S", 0.2)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "m.jsonl").write_text('{"id": "1", "audio": "a.wav", "text": "t"}\n')
    options = [option.replace("HOST", host) for option in OPTIONS[kind](tmp_path)]
    usual = {"--manifest": str(tmp_path / "m.jsonl"), "--output": str(tmp_path / "out")}
    for name, value in usual.items():
        if name not in options:
            options += [name, value]
    try:
        status = annotate.main(["--dry-run", *options])
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert status in (1, 2) and err and CANARY not in out + err
    if kind.startswith("redirected"):
        assert "302" in err and f"{host}/other" in err

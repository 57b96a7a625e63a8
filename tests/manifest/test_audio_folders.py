"""Folders of audio as manifests: which are, and their rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from jobs.make_manifest import main
from pipeline.errors import ConfigError
from pipeline.manifest.read import expand, read_ids, read_manifest
from tests.support.containers import tar_file
from tests.support.manifests import jsonl, read

NAMES = ["a.wav", "b/c.FLAC", "b/d#1?.mp3", "e.txt", ".f.wav"]


def folder(top: Path) -> Path:
    for name in NAMES:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"RIFF")
    return top


def test_a_folder_of_audio_has_a_row_for_each_file(tmp_path, caplog):
    """Fails if a file is left out or read twice, or its row is another than that of a manifest made of the folder."""
    top = folder(tmp_path / "in")
    (uri,) = expand([str(top)])
    assert uri == f"{top}/" and expand([f"{top}/", str(top)]) == [uri]
    rows, rejects = read(uri)
    assert not rejects and rows["audio"].to_pylist() == [f"{top}/{name}" for name in NAMES[:3]]
    assert rows["line"].to_pylist() == [1, 2, 3] and set(rows["manifest"].to_pylist()) == {uri}
    assert "left out: 1, names that begin with a dot" in caplog.text
    assert main([str(top), "--output", str(tmp_path / "m.jsonl")]) == 0
    made = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["id"] for row in made] == rows["recording_id"].to_pylist() == list(read_ids(uri))
    assert [chunk.rows.num_rows for chunk in read_manifest(uri, chunk_rows=2)] == [2, 1]
    other = folder(tmp_path / "language=es/day")
    assert set(read(expand([str(other)])[0])[0]["language"].to_pylist()) == {"es"}


def test_manifests_win(tmp_path, caplog):
    """Fails if the audio beside a manifest or tars becomes rows too, or of a manifest that is named otherwise instead of it,
    or if the description of a data set is read as a manifest."""
    caplog.set_level(logging.INFO)
    top = folder(tmp_path / "in")
    tar = tar_file(top / "b/x.tar", {"a.wav": b"RIFF"})
    assert expand([str(top)]) == [str(tar)] and "not the 3 audio files" in caplog.text
    manifest = jsonl(top / "b/m.jsonl", {"audio": "c.FLAC"})
    assert expand([str(top)]) == [str(manifest)]
    assert expand([str(top / "*")]) != [f"{top}/"]
    (top / "b/dataset_infos.json").write_text('{"default": {}}')
    assert expand([str(top)]) == [str(manifest)]
    for odd in ("_hidden.jsonl", "table.orc"):
        manifest.rename(top / odd)
        tar.unlink(missing_ok=True)
        with pytest.raises(ConfigError, match="no file with a manifest's extension"):
            expand([str(top)])
        (top / odd).rename(manifest)


def test_a_prefix_of_audio(s3):
    """Fails if a folder of audio in a bucket has no rows, or other URIs than its objects."""
    keys = [f"{s3.bucket}/plain/{name}" for name in NAMES[:4]]
    for key in keys:
        s3.filesystem().pipe_file(key, b"RIFF")
    (uri,) = expand([f"s3://{s3.bucket}/plain"])
    assert uri == f"s3://{s3.bucket}/plain/"
    assert read(uri)[0]["audio"].to_pylist() == [f"s3://{key}" for key in keys[:3]]

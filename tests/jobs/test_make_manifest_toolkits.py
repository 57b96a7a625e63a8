"""Manifests of Kaldi's data folders and NeMo's tarred data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.make_manifest import main
from pipeline.storage.fetch import fetch
from tests.support.containers import tar_file
from tests.support.manifests import jsonl, read


def made(source: Path | str, out: Path, *options: str, expect: int = 0) -> list[dict[str, object]]:
    assert main([str(source), "--output", str(out), *options]) == expect
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if expect == 0 else []


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(text)
    return folder


def test_a_data_folder_of_kaldi(tmp_path, capsys, monkeypatch):
    """Fails if a segment has another time, recording, text or speaker, or a command in wav.scp is run or guessed at."""
    monkeypatch.chdir(tmp_path)
    wav_scp = "r1 audio/r1.wav\nr2  /x/two words.flac\nr3 sph2pipe x.sph |\nr4 raw.ark:17\nr5 https://h/a.wav\nr6 ftp://h/a\nr7\n"
    tables = {"text": "u1 hola  qué tal\nu2\n", "utt2spk": "u1 ana\nu2 ben\n", "utt2lang": "u1 es\n"}
    tables["spk2gender"] = "ana f\nben m\n"
    segments = "u1 r1 0.5 2.25\nu2 r2 1 -1\nu3 r3 0 1\nu4 r9 0 1\nu5 r1 0\nu6 r5 0 1.5\n"
    assert made(kaldi(tmp_path / "d", wav_scp=wav_scp, segments=segments, **tables), tmp_path / "m", "--layout", "kaldi") == [
        {"id": "u1", "audio": f"{tmp_path}/audio/r1.wav", "offset": 0.5, "duration": 1.75, "text": "hola  qué tal",
         "language": "es", "speaker": "ana", "sex": "female"},
        {"id": "u2", "audio": "/x/two words.flac", "offset": 1.0, "text": "", "speaker": "ben", "sex": "male"},
        {"id": "u6", "audio": "https://h/a.wav", "offset": 0.0, "duration": 1.5},
    ]  # fmt: skip
    printed = capsys.readouterr().out
    for words in ("its recording is the output of a command", "its recording is in an archive", "1, its recording is not in",
                  "1, a line of segments", "ftp", "1, its line of wav.scp names no file: r7"):  # fmt: skip
        assert words in printed
    rows = made(
        kaldi(tmp_path / "whole", wav_scp="r1 a.wav\nr2 b.wav\n", text="r1 x\n"), tmp_path / "w", "--layout", "kaldi"
    )
    assert rows == [{"id": "r1", "audio": f"{tmp_path}/a.wav", "text": "x"}, {"id": "r2", "audio": f"{tmp_path}/b.wav"}]
    made(kaldi(tmp_path / "none", text="r1 x\n"), tmp_path / "n", "--layout", "kaldi", expect=2)
    assert "no wav.scp" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["tarred_audio_manifest.json", "sharded_manifests/manifest_1.json"])
def test_a_tarred_data_set_of_nemo(tmp_path, capsys, place):
    """Fails if a line's audio is that of another file or shard, or one that is not in its tar is dropped without a word."""
    for shard in range(2):
        tar_file(tmp_path / f"audio_{shard}.tar", {f"a_b{n}.wav": f"{shard}{n}".encode() for n in range(3)})
    lines = [
        {"audio_filepath": f"a_b{n}.wav", "duration": 1.0, "text": f"t{n}", "shard_id": shard}
        for shard in range(2) for n in range(3)
    ]  # fmt: skip
    (tmp_path / "sharded_manifests").mkdir()
    plain = {"audio_filepath": "plain.wav", "duration": 1.0}
    others = [{**lines[0], "audio_filepath": "gone.wav"}, {**lines[0], "shard_id": 7}, plain]
    source = jsonl(tmp_path / place, *lines, *others)
    rows = made(source, tmp_path / "m.jsonl", "--layout", "nemo")
    assert [fetch(str(row["audio"]), max_bytes=9).decode() for row in rows[:6]] == ["00", "01", "02", "10", "11", "12"]
    assert [Path(str(row["audio"])).name for row in rows[6:]] == ["a_b0.wav", "plain.wav"]
    assert "left out: 1, named in a manifest, but not in its tar: gone.wav" in capsys.readouterr().out
    again, rejects = read(tmp_path / "m.jsonl")
    assert not rejects and again["audio"].to_pylist() == [row["audio"] for row in rows]

"""Manifests of NeMo and Lhotse: written from ours, and read back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import soundfile

from jobs.make_manifest import main
from tests.jobs.test_make_manifest import made
from tests.support.corpus import AUDIO


def source_rows(folder: Path) -> Path:
    """A manifest with a whole file, two spans of one, and one side of a stereo file."""
    rows = [
        {
            "id": "a",
            "audio": str(AUDIO / "en_16k_pcm16.wav"),
            "text": "Hello.",
            "language": "en",
            "label": "sad",
            "take": 3,
        },
        {
            "id": "b1",
            "audio": str(AUDIO / "en_16k_long.flac"),
            "offset": 1.5,
            "duration": 2.0,
            "speaker": "x",
            "sex": "male",
        },
        {"id": "b2", "audio": str(AUDIO / "en_16k_long.flac"), "offset": 4.0, "duration": 1.0},
        {"id": "c", "audio": str(AUDIO / "en_44k1_stereo.flac"), "channel": 1},
    ]
    path = folder / "ours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["nemo", "lhotse"])
def test_there_and_back(tmp_path, form):
    """Fails if a span, channel, label or speaker is lost or moved on the way to another toolkit's manifest or back."""
    ours = source_rows(tmp_path)
    away = tmp_path / ("nemo.jsonl" if form == "nemo" else "lhotse")
    assert main([str(ours), "--layout", "manifest", "--to", form, "--output", str(away)]) == 0
    back = made(away, tmp_path / "back.jsonl", "--layout", form)
    given = [json.loads(line) for line in ours.read_text().splitlines()]
    for row, original in zip(back, given, strict=True):
        assert {name: value for name, value in row.items() if name != "duration" or "duration" in original} == original
        assert float(str(row["duration"])) > 0.5
    if form == "nemo":
        first = json.loads(away.read_text().splitlines()[0])
        assert {"audio_filepath", "lang", "text", "duration"} <= first.keys() and not {
            "audio",
            "language",
        } & first.keys()


def test_lhotse_says_what_it_must(tmp_path):
    """Fails if a recording lacks samples or rate, stands twice, or a supervision leaves its recording."""
    assert (
        main([str(source_rows(tmp_path)), "--layout", "manifest", "--to", "lhotse", "--output", str(tmp_path / "l")])
        == 0
    )
    recordings, supervisions = (
        [json.loads(line) for line in gzip.decompress((tmp_path / "l" / name).read_bytes()).splitlines()]
        for name in ("recordings.jsonl.gz", "supervisions.jsonl.gz")
    )
    assert [recording["id"] for recording in recordings] == ["a", "b1", "c"]
    for recording in recordings:
        info = soundfile.info(recording["sources"][0]["source"])
        assert (recording["num_samples"], recording["sampling_rate"]) == (info.frames, info.samplerate)
        assert recording["sources"][0]["channels"] == list(range(info.channels))
    spans = {
        each["id"]: (each["recording_id"], each["start"], each["duration"], each["channel"]) for each in supervisions
    }
    assert spans["b2"] == ("b1", 4.0, 1.0, 0) and spans["c"][3] == 1
    assert supervisions[0]["custom"] == {"label": "sad", "take": 3}


def test_lhotse_of_others(tmp_path, capsys):
    """Fails if a channel's number in Lhotse is taken for its place in the file, or what only Lhotse can read is guessed at."""
    whole = {"sampling_rate": 8000, "num_samples": 80000, "duration": 10.0}
    recordings = [
        {"id": "call", "sources": [{"type": "file", "channels": [0], "source": "a.wav"},
                                   {"type": "file", "channels": [1], "source": "b.wav"}], **whole},
        {"id": "array", "sources": [{"type": "file", "channels": [2, 5], "source": "/x/array.wav"}], **whole},
        {"id": "fast", "sources": [{"type": "file", "channels": [0], "source": "f.wav"}], **whole,
         "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]},
        {"id": "piped", "sources": [{"type": "command", "channels": [0], "source": "sph2pipe x |"}], **whole},
        {"id": "bare", "sources": [{"type": "file", "channels": [0], "source": "bare.wav"}], **whole},
    ]  # fmt: skip
    spans = [("call", 1, 1.0, 2.0), ("array", 5, 0.0, 10.0), ("array", [2, 5], 3.0, 1.0), ("fast", 0, 0.0, 10.0),
             ("piped", 0, 0.0, 10.0), ("gone", 0, 0.0, 1.0)]  # fmt: skip
    supervisions = [
        {
            "id": f"s{n}",
            "recording_id": name,
            "channel": channel,
            "start": start,
            "duration": length,
            "language": "English",
        }
        for n, (name, channel, start, length) in enumerate(spans)
    ]
    folder = tmp_path / "lhotse"
    folder.mkdir()
    (folder / "x_recordings_train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in recordings))
    (folder / "x_supervisions_train.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(each) + "\n" for each in supervisions).encode())
    )
    assert made(folder, tmp_path / "m.jsonl", "--layout", "lhotse") == [
        {"id": "s0", "audio": str(folder / "b.wav"), "offset": 1.0, "duration": 2.0, "language": "en"},
        {"id": "s1", "audio": "/x/array.wav", "duration": 10.0, "channel": 1, "language": "en"},
        {"id": "s2", "audio": "/x/array.wav", "offset": 3.0, "duration": 1.0, "language": "en"},
        {"id": "bare", "audio": str(folder / "bare.wav"), "duration": 10.0},
    ]
    said = capsys.readouterr().out
    assert all(
        f"left out: 1, its recording {why}" in said for why in ("is transformed", "comes from a command", "is missing")
    )

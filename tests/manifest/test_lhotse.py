"""Lhotse's cuts and Shar folders as manifests: written by Lhotse itself, and decoded to the audio that it loads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

from pipeline.audio.decode import decode
from pipeline.errors import Reason
from pipeline.manifest.read import expand
from pipeline.storage.fetch import fetch
from tests.support.cases import case
from tests.support.manifests import jsonl, read


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> tuple[Path, list[MonoCut]]:
    """Cuts of a file of two channels and one of one, and their folder."""
    folder, noise = tmp_path_factory.mktemp("lhotse"), np.random.default_rng(0)
    soundfile.write(folder / "a.wav", noise.normal(0, 0.1, (48000, 2)), 16000)
    soundfile.write(folder / "b.wav", noise.normal(0, 0.1, 32000), 16000)
    two, one = (Recording.from_file(folder / name) for name in ("a.wav", "b.wav"))
    some = {"text": "hola", "language": "Spanish", "speaker": "x", "gender": "F", "custom": {"take": 1}}
    return folder, [
        MonoCut(
            "c1", 0.5, 2.0, 1, recording=two,
            supervisions=[
                SupervisionSegment("s1", "a", 0.25, 1.0, channel=1, **some),
                SupervisionSegment("s2", "a", 1.5, 1.0, channel=1),  # it ends after the cut
            ],
        ),
        MonoCut("c2/x.y", 0.0, 2.0, 0, recording=one),
        MultiCut("c3", 0.0, 3.0, [0, 1], recording=two, supervisions=[SupervisionSegment("s3", "a", 0, 3, [0, 1], "both")]),
        MonoCut("c4", 1.0, 0.5, 0, recording=one),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Lhotse leaves its tars open
@pytest.mark.parametrize("form", ["cuts.jsonl", "cuts.jsonl.gz", "shar"])
def test_rows_are_the_audio_that_lhotse_loads(cuts, tmp_path, form):
    """Fails if a cut or supervision has other audio, text or columns than Lhotse gives it, or is lost."""
    _, given = cuts
    if form == "shar":
        CutSet.from_cuts(given).to_shar(tmp_path, fields={"recording": "wav"}, shard_size=3)
        loaded = list(CutSet.from_shar(in_dir=tmp_path))
    else:
        CutSet.from_cuts(given).to_file(tmp_path / form)
        loaded = given
    manifests, rows = expand([str(tmp_path)]), []
    assert len(manifests) == (2 if form == "shar" else 1)
    for manifest in manifests:
        table, rejects = read(manifest)
        assert not rejects
        rows += table.to_pylist()
    assert [row["recording_id"] for row in rows] == ["s1", "s2", "c2/x.y", "s3", "c4"]
    assert [row["line"] for row in rows] == ([1, 1, 2, 3, 1] if form == "shar" else [1, 1, 2, 3, 4])
    first = rows[0]
    assert (first["text"], first["language"], first["speaker"], first["sex"], first["take"]) == (
        "hola",
        "es",
        "x",
        "F",
        1,
    )
    wanted = [loaded[0].truncate(offset=0.25, duration=1.0), loaded[0].truncate(offset=1.5, duration=0.5), *loaded[1:]]
    for row, cut in zip(rows, wanted, strict=True):
        with case(row):
            content = fetch(row["audio"], max_bytes=10**6)
            waveform = decode(
                content, offset_s=row["offset_s"] or 0.0, duration_s=row["duration_s"], channel=row["channel"]
            )
            np.testing.assert_allclose(waveform, cut.load_audio().mean(axis=0), atol=1e-4)


def test_what_only_lhotse_can_make_is_a_reject(cuts, tmp_path):
    """Fails if a cut that is mixed, transformed or damaged stops the job, is lost, or costs another one."""
    folder, given = cuts
    recording = given[1].recording
    mixed = MonoCut("m", 0.0, 1.0, 0, recording=recording).mix(given[3])
    fast = MonoCut("f", 0.0, 1.0, 0, recording=recording.perturb_speed(1.1))
    odd = [
        {**given[1].to_dict(), "type": "MonoCut", "id": name, **changes}
        for name, changes in {
            "d1": {"recording": {"id": "x"}}, "d2": {"recording": 7}, "d3": {"supervisions": [7]}, "d4": {"duration": "x"},
            "d5": {"supervisions": [{"id": "s", "start": 5.0, "duration": 1.0}]}, "d6": {"start": None},
            "d7": {"recording": {**recording.to_dict(), "sources": [{"type": "command", "channels": [0], "source": "rm x|"}]}},
            "d8": {"recording": {**recording.to_dict(), "sources": [{"type": "shar", "channels": [0], "source": ""}]}},
            "d9": {"channel": 5}, "d10": {"channel": {"x": 1}},
        }.items()
    ]  # fmt: skip
    lines = [{**cut.to_dict(), "type": type(cut).__name__} for cut in (mixed, fast)]
    plain = {"id": "p", "audio": "p.wav", "type": "MonoCut", "duration": 1}
    path = jsonl(tmp_path / "m.jsonl", *lines, *odd, {**given[1].to_dict(), "type": "MonoCut"}, plain)
    rows, rejects = read(path)
    assert rows["recording_id"].to_pylist() == ["c2/x.y", "p"]
    assert rows["audio"].to_pylist() == [str(folder / "b.wav"), str(tmp_path / "p.wav")]
    assert len(rejects) == 12 and {reject.cause.reason for reject in rejects} == {Reason.BAD_FIELD}
    details = {reject.recording_id: reject.cause.detail for reject in rejects}
    assert "mixed" in details[mixed.id] and "transformed" in details["f"] and "outside the cut" in details["s"]
    assert "command" in details["d7"] and "not in the tar" in details["d8"]


def test_a_shar_whose_tar_is_missing_or_cut(cuts, tmp_path):
    """Fails if the rows of a Shar folder whose audio is missing stop the job, or those that are there are lost."""
    CutSet.from_cuts(cuts[1]).to_shar(tmp_path, fields={"recording": "wav"}, shard_size=None)
    (tar,) = tmp_path.glob("*.tar")
    tar.write_bytes(tar.read_bytes()[: 512 + 80_000])
    (manifest,) = tmp_path.glob("cuts*")
    renamed = manifest.rename(tmp_path / "cuts.000000.jsonl.gz")
    tar = tar.rename(tmp_path / "recording.000000.tar")
    rows, rejects = read(renamed)
    assert rows["recording_id"].to_pylist() == ["s1", "s2", "c2/x.y"] and len(rejects) == 2
    tar.unlink()
    rows, rejects = read(renamed)
    assert rows.num_rows == 0 and len(rejects) == 5 and "recording.000000.tar does not exist" in rejects[0].cause.detail
    with gzip.open(renamed, "rt") as file:
        assert json.loads(file.readline())["recording"]["sources"][0]["type"] == "shar"


def test_custom_fields_do_not_move_the_audio(cuts, tmp_path):
    """Fails if a custom field named like one of ours replaces a supervision's place in the recording, or is lost."""
    _, given = cuts
    cut = {**given[0].to_dict(), "type": "MonoCut"}
    rows, _ = read(jsonl(tmp_path / "plain.jsonl", cut))
    custom = {"offset": 9.0, "Duration": 8.0, "channel": 7, "id": "x", "uri": "y", "text": "z", "language": "fr"}
    changed = {**cut, "supervisions": [{**segment, "custom": custom} for segment in cut["supervisions"]]}
    moved, rejects = read(jsonl(tmp_path / "custom.jsonl", changed))
    assert not rejects
    places = ["recording_id", "audio", "offset_s", "duration_s", "channel", "text"]
    assert [[row[name] or "z" for name in places] for row in moved.to_pylist()] == [
        [row[name] or "z" for name in places] for row in rows.to_pylist()
    ]
    assert set(moved["custom_offset"].to_pylist()) == {9.0} and set(moved["custom_Duration"].to_pylist()) == {8.0}

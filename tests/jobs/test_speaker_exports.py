"""Speakers of an output in other toolkits: RTTM, TextGrid and Lhotse, read back by their own readers; and in call metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lhotse import SupervisionSet
from praatio import textgrid

from jobs.calls import main as calls_main
from jobs.make_manifest import main
from pipeline.audio.turns import rttm_turns
from pipeline.manifest.sources.corpus import Corpus
from pipeline.manifest.sources.diarised import textgrids
from pipeline.shard.context import Work
from tests.support.golden import PARITY
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, published, real_recogniser, work_of

CLIP = str(PARITY / "audio" / "en_16k_pcm16.wav")


def turn(start_s: float, end_s: float, speaker: str, text: str | None = None) -> dict[str, object]:
    return {"start_s": start_s, "end_s": end_s, "speaker": speaker, "text": text}


@pytest.fixture(scope="module")
def work(tmp_path_factory, checkpoints) -> Work:
    """Two recordings by turns: one with overlap and quotes, one whose row has a `speaker` of its own."""
    folder = tmp_path_factory.mktemp("speakers")
    records = [
        {"id": "a b", "audio": CLIP, "turns": [turn(0.0, 1.0, "ann", 'She said "no".'), turn(0.5, 1.5, "bob m"),
                                               turn(1.25, 1.75, "ann", "Ok.")]},
        {"id": "c", "audio": CLIP, "speaker": "caller", "turns": [turn(0.25, 1.75, "cleo", "Hello.")]},
    ]  # fmt: skip
    work = work_of(
        folder, [{**each, "language": "en"} for each in records], models_of(checkpoints, "mean", ["en"]), turns="turns"
    )
    by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    published(work)
    return work


def exported(work: Work, out: Path, form: str) -> Path:
    assert main([work.output, "--layout", "output", "--to", form, "--output", str(out)]) == 0
    return out


def expected(work: Work) -> list[tuple[str, float, float, str]]:
    return [(row["recording_id"], row["start_s"], row["end_s"], row["speaker_id"]) for row in parts(work).to_pylist()]


def test_rttm_is_read_back(work, tmp_path):
    """Fails if a speaker, time or recording is lost on the way to RTTM, or Lhotse or `--turns` reads another one from it."""
    file = exported(work, tmp_path / "out.rttm", "rttm")
    by_lhotse = [(each.recording_id, each.start, each.end, each.speaker) for each in SupervisionSet.from_rttm(file)]
    assert len(by_lhotse) == 4
    for found, (recording, start_s, end_s, speaker) in zip(sorted(by_lhotse), sorted(expected(work)), strict=True):
        assert found == (
            recording.replace(" ", "_"),
            pytest.approx(start_s),
            pytest.approx(end_s),
            speaker.replace(" ", "_"),
        )
    mine = rttm_turns(file.read_bytes(), {"a_b"})
    assert [(each.start_s, each.end_s, each.speaker) for each in mine] == [
        (pytest.approx(start_s, abs=1e-4), pytest.approx(end_s, abs=1e-4), speaker.replace(" ", "_"))
        for recording, start_s, end_s, speaker in expected(work)
        if recording == "a b"
    ]


def test_textgrids_are_read_back(work, tmp_path):
    """Fails if Praat's format is broken, by a quote or by a gap, or a text or a label is in another speaker's tier."""
    exported(work, tmp_path / "grids", "textgrid")
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["a b.TextGrid", "c.TextGrid"]
    grid = textgrid.openTextgrid(str(tmp_path / "grids" / "a b.TextGrid"), includeEmptyIntervals=False)
    assert set(grid.tierNames) == {"ann", "ann: label", "bob m", "bob m: label"}
    rows = [row for row in parts(work).to_pylist() if row["recording_id"] == "a b"]
    for name in ("ann", "bob m"):
        mine = [row for row in rows if row["speaker_id"] == name]
        for tier, column in ((name, "text"), (f"{name}: label", "label")):
            found = [tuple(entry) for entry in grid.getTier(tier).entries]
            assert found == [(pytest.approx(row["start_s"]), pytest.approx(row["end_s"]), row[column]) for row in mine]


def test_overlapping_utterances_have_tiers_of_their_own(tmp_path):
    """Fails if windows, which overlap, make a TextGrid that Praat refuses, or a channel's tier has no name."""
    rows = [
        {"id": f"r#{n:04}", "audio": "/a.wav", "offset": n / 2, "duration": 1.0, "channel": 1, "text": f"w{n}"}
        for n in range(3)
    ]
    corpus = Corpus(rows=[*rows, {"id": "t#0000", "text": "no audio"}])
    ((name, content),) = textgrids(corpus)
    (tmp_path / name).write_bytes(content)
    grid = textgrid.openTextgrid(str(tmp_path / name), includeEmptyIntervals=False)
    tiers = {each: [entry.label for entry in grid.getTier(each).entries] for each in ("channel_1", "channel_1 (2)")}
    assert tiers == {"channel_1": ["w0", "w2"], "channel_1 (2)": ["w1"]}
    assert corpus.left_out == {"an utterance without times": ["t#0000"]}


def test_lhotse_has_our_speaker_and_keeps_the_manifests(work, tmp_path):
    """Fails if Lhotse's speaker is that of the row, or the row's own is lost."""
    exported(work, tmp_path / "lhotse", "lhotse")
    supervisions = {each.id: each for each in SupervisionSet.from_file(tmp_path / "lhotse" / "supervisions.jsonl.gz")}
    assert supervisions["c#0000"].speaker == "cleo" and supervisions["c#0000"].custom["speaker"] == "caller"
    assert supervisions["a b#0001"].speaker == "bob m"


def test_a_manifest_has_both_speakers(work, tmp_path):
    """Fails if an export loses our speakers, or one of the two columns takes the other's values."""
    exported(work, tmp_path / "m.jsonl", "manifest")
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())}
    assert (rows["c#0000"]["speaker_id"], rows["c#0000"]["speaker"]) == ("cleo", "caller")
    assert "speaker" not in rows["a b#0001"] and "turns" not in rows["c#0000"]


def test_only_outputs_are_written_as_rttm(work, tmp_path, capsys):
    """Fails if a manifest without speakers or spans becomes an empty RTTM file in silence."""
    with pytest.raises(SystemExit) as caught:
        main([work.output, "--to", "rttm", "--output", str(tmp_path / "x.rttm")])
    assert caught.value.code == 2 and "--to rttm is for --layout output" in capsys.readouterr().err


def test_calls_are_measured_by_our_speakers(work):
    """Fails if the metrics of a call in one channel know one speaker although the output has several."""
    assert calls_main([work.output, "--by", "recording_id"]) == 0
    (file,) = Path(work.output, "summaries", "@calls", "recording_id").glob("*.parquet")
    rows = [
        row for row in pq.read_table(file).to_pylist() if row["scope"] == "speaker" and row["recording_id"] == "a b"
    ]
    assert {(row["speaker"], row["utterances"], round(row["talk_s"], 3)) for row in rows} == {
        ("ann", 2, 1.5),
        ("bob m", 1, 1.0),
    }
    assert [round(row["overlap_s"], 3) for row in rows] == [0.75, 0.75]

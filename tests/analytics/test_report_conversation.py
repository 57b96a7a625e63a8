"""Pages of conversations: every speaker on one time axis, and audio that is that of the utterance."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.io import wavfile

from pipeline.analytics.report import clips
from pipeline.audio.decode import decode
from pipeline.dataset.plan import read_shard
from pipeline.dataset.reader import finished_rows
from pipeline.schema import EMOTIONS
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from tests.analytics.test_report import Read, told
from tests.analytics.test_report_figures import boxes, facts, section
from tests.support.golden import PARITY
from tests.support.outputs import LONG, plan_rows, publish_plan, recognised
from tests.support.shards import FakeTranscriber, by_hand, models_of, published, real_recogniser, work_of

RATE = 16_000
TONES_HZ = (440, 880)
"""Tone of each channel of the call."""
SPANS = {"r0": (0.5, 1.75), "r1": (2.0, 3.0), "r2": (3.0, 3.5)}
"""Start and end of the utterance of each row."""


def call_of(folder: Path) -> str:
    """An output of one call: two channels of a WAV file, three rows, with arousal and words."""
    file = folder / "audio" / "call 1.wav"
    file.parent.mkdir(parents=True)
    times = np.arange(4 * RATE) / RATE
    wavfile.write(
        file, RATE, np.stack([0.3 * np.sin(2 * np.pi * hz * times) for hz in TONES_HZ], axis=1).astype(np.float32)
    )
    rows = [
        {"id": "r0", "audio": str(file), "channel": 0, "speaker": "Ada"},
        {"id": "r1", "audio": str(file), "channel": 1, "speaker": "Ben"},
        {"id": "r2", "audio": str(file), "channel": 0, "speaker": "Ada"},
        {"id": "other", "audio": "/a/other.wav", "channel": 0, "speaker": "Eve"},
    ]
    store = open_store(str(folder / "out"))
    plan = plan_rows(store, folder / "m", rows, shard_rows=len(rows))
    work = Work(store.root, plan, AudioRoots.parse(("/",), []))
    for shard in plan.shards():
        planned = read_shard(store, shard)
        table = recognised(planned, shard.number)
        ids = [planned["recording_id"][row].as_py() for row in table["row"].to_pylist()]
        parts = table["segment_index"].to_pylist()
        spans = [SPANS.get(each, (0.0, 1.0)) for each in ids]
        starts = [start + 0.2 * part for (start, _), part in zip(spans, parts, strict=True)]
        # the helper makes three utterances of r1
        ends = [start + 0.2 if each == LONG else span[1] for each, start, span in zip(ids, starts, spans, strict=True)]
        for name, column in {
            "start_s": pa.array(starts),
            "end_s": pa.array(ends),
            "arousal": pa.array([0.3 + start / 10 for start in starts]),
            "text": pa.array([f"words of {each}" for each in ids]),
        }.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), column.cast(table.schema.field(place).type))
        assert finish(work, shard, table, {"prepare": 1.0}).won
    publish_plan(store, plan)
    return store.root


@pytest.fixture(scope="module")
def call(tmp_path_factory) -> str:
    return call_of(tmp_path_factory.mktemp("call"))


def players(page: str) -> list[str]:
    return re.findall(r'<audio controls preload="none" src="([^"]+)"></audio>', page)


def test_both_channels_of_a_call_are_on_one_axis_from_0(call, tmp_path):
    """Fails if a channel of the call has a page, a lane or an axis of its own, or an utterance of another file is on it."""
    page = told([call, "--recording", "r1", "--with-texts"], tmp_path / "page.html")
    rows = Read(page).tables["conversation"]
    assert [(row[2], row[3]) for row in rows] == [
        ("Ada · channel 0", "words of r0"), *[("Ben · channel 1", "words of r1")] * 3, ("Ada · channel 0", "words of r2"),
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [
        [0.5, 1.75],
        *[[pytest.approx(s), pytest.approx(s + 0.2)] for s in (2.0, 2.2, 2.4)],
        [3.0, 3.5],
    ]
    frame, drawn = boxes(page, "conversation")
    scale = (frame.right - frame.left) / 3.5
    assert sorted(
        (round((box.left - frame.left) / scale, 2), box.colour) for box in drawn if box.colour in EMOTIONS
    ) == [(round(row[0], 2), row[4]) for row in rows]
    assert ">arousal<" in section(page, "conversation") and ">valence<" not in section(page, "conversation")
    assert (facts(page)["utterances"], facts(page)["speakers or channels"]) == ("5", "2")
    by_address = told([call, "--recording", str(Path(call).parent / "audio/call 1.wav")], tmp_path / "same.html")
    assert [row[:2] for row in Read(by_address).tables["conversation"]] == [row[:2] for row in rows]
    assert "words of r" not in by_address


def test_speakers_of_turns_have_lanes(tmp_path, checkpoints):
    """Fails if the speakers of a recording that was cut by turns share a lane, or a turn without a speaker is lost."""
    speech = [decode((PARITY / "audio" / name).read_bytes()) for name in ("en_16k_pcm16.wav", "es_16k_pcm16.wav")]
    middle, end = len(speech[0]) / RATE, sum(map(len, speech)) / RATE
    wavfile.write(tmp_path / "talk.wav", RATE, np.concatenate(speech))
    turns = [
        {"start_s": 0.0, "end_s": middle, "speaker": "ann", "text": "Hello."},
        {"start_s": middle, "end_s": end - 0.5, "speaker": "bob", "text": "Hola."},
        {"start_s": end - 0.5, "end_s": end, "speaker": None, "text": "Who?"},
    ]
    record = {"id": "talk", "audio": str(tmp_path / "talk.wav"), "language": "en", "text": None, "turns": turns}
    work = work_of(tmp_path / "w", (record,), models_of(checkpoints, "mean", ["en"]), turns="turns")
    by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    page = told([published(work).root, "--recording", "talk", "--with-texts"], tmp_path / "page.html")
    rows = Read(page).tables["conversation"]
    assert [row[2:4] for row in rows] == [["ann", "Hello."], ["bob", "Hola."], ["(unknown)", "Who?"]]
    assert [row[0] for row in rows] == pytest.approx([0, middle, end - 0.5], abs=0.01)
    lanes = re.findall(r">(ann|bob|\(unknown\))</text>", section(page, "conversation"))
    assert lanes == ["ann", "bob", "(unknown)"] and facts(page)["speakers or channels"] == "3"
    assert len(re.findall(r'<a href="#conversation-r', page)) == 3


def test_a_page_has_no_audio_unless_asked(call, tmp_path):
    """Fails if voices are on a page that nobody asked for them, or its policy permits any."""
    page = told([call, "--recording", "r1", "--with-texts"], tmp_path / "page.html")
    assert "<audio" not in page.partition("<script>")[0] and "media-src" not in page and "data:" not in page


def test_copied_audio_is_that_of_the_utterance(call, tmp_path):
    """Fails if a clip is of another channel, another time or another length, or is much larger than it must be."""
    page = told([call, "--recording", "r0", "--audio", "copy"], tmp_path / "page.html")
    rows, copies = Read(page).tables["conversation"], players(page)
    assert "media-src data:" in page and len(copies) == len(rows) == 5
    for row, copy in zip(rows, copies, strict=True):
        content = base64.b64decode(copy.removeprefix("data:audio/mpeg;base64,"))
        waveform = decode(content)
        seconds = row[2] - row[1]
        assert len(waveform) / RATE == pytest.approx(seconds, abs=0.15)
        spectrum = np.abs(np.fft.rfft(waveform))
        tone = TONES_HZ["channel 1" in row[3]]
        assert np.argmax(spectrum) * RATE / len(waveform) == pytest.approx(tone, abs=5)
        assert len(content) < 4_000 * seconds + 1_000


def test_copies_are_limited(call, tmp_path, monkeypatch):
    """Fails if a page grows with the recording, or is silent on what it lacks."""
    monkeypatch.setattr(clips, "COPIED_S", 1.5)
    page = told([call, "--recording", "r0", "--audio", "copy"], tmp_path / "page.html")
    assert len(players(page)) == 2
    assert "3 utterances have no audio here" in Read(page).text


def test_audio_that_cannot_be_read_is_named(tmp_path):
    """Fails if a page cannot be made because audio is gone, or does not say which."""
    output = call_of(tmp_path)
    (tmp_path / "audio/call 1.wav").unlink()
    page = told([output, "--recording", "r0", "--audio", "copy"], tmp_path / "page.html")
    assert not players(page) and "call 1.wav cannot be read" in Read(page).text


def test_links_begin_and_end_at_the_utterance(call, tmp_path):
    """Fails if a link is of another span, is broken by a space, or names a place that no browser opens."""
    page = told([call, "--recording", "r0", "--audio", "link"], tmp_path / "page.html")
    assert "media-src file: http: https:" in page
    assert players(page)[0] == f"file://{Path(call).parent}/audio/call%201.wav#t=0.50,1.75"
    sources = [("s3://b/a.wav", None, 0.0, 1.0), ("https://h/a.wav", 0, 1.0, 2.5), (None, None, 0.0, 1.0)]
    made = clips.players(finished_rows(open_store(call)), sources, clips.Audio.LINK)
    assert made.addresses == [None, "https://h/a.wav#t=1.00,2.50", None]
    assert made.note == "2 utterances are in places that a browser cannot open."

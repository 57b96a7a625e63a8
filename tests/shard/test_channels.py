"""`--channels` through the steps of a shard: utterances of each channel, their order, texts, languages and audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.dataset.plan import read_shard
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Invariant
from pipeline.dataset.verify.rows import RowFaults
from pipeline.engine.job_log import report_warnings
from pipeline.shard import prepare as prepare_module
from pipeline.shard.prepare import prepare
from tests.support.golden import PARITY
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, published, real_recogniser, row, work_of

EN, ES = (decode((PARITY / "audio" / name).read_bytes()) for name in ("en_16k_pcm16.wav", "es_16k_pcm16.wav"))
PAUSE = np.zeros(SAMPLING_RATE, np.float32)


def written(path: Path, *channels: np.ndarray) -> str:
    soundfile.write(path, np.stack(channels, axis=1), SAMPLING_RATE, subtype="FLOAT")
    return str(path)


def call(folder: Path, times: int = 2) -> str:
    """A call: channel 0 begins, then they take turns."""
    left = np.concatenate([PAUSE, EN, PAUSE, np.zeros_like(ES)] * times)
    right = np.concatenate([PAUSE, np.zeros_like(EN), PAUSE, ES] * times)
    return written(folder / "call.wav", left, right)


def times(table: pa.Table) -> list[tuple[int, int | None]]:
    return [(line["segment_index"], line["channel"]) for line in table.select(["segment_index", "channel"]).to_pylist()]


def test_each_channel_has_utterances_on_one_time_axis(tmp_path, checkpoints):
    """Fails if a channel is lost, its utterances come after those of the other, or their audio is the other's."""
    records = [{"id": "a", "audio": call(tmp_path), "language": "en"}, row(1)]
    work = work_of(
        tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]), channels="split", segmentation="vad"
    )
    (shard,) = work.plan.shards()
    assert min(prepare(work, shard)["speech_s"].drop_null().to_pylist()) > 0.5, "each has its own audio"
    _, finished = by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ()
    found = [each for each in parts(work).to_pylist() if each["recording_id"] == "a"]
    assert [(each["utterance_id"], each["channel"]) for each in found] == [(f"a#{n:04}", n % 2) for n in range(4)]
    starts = [each["start_s"] for each in found]
    expected = np.array([1, 2 + len(EN) / SAMPLING_RATE])
    length_s = 2 + (len(EN) + len(ES)) / SAMPLING_RATE
    assert starts == pytest.approx([*(expected - 0.2), *(expected - 0.2 + length_s)], abs=0.25)
    assert {each["text"] for each in found} == {"heard words"}
    assert not audit(published(work), deep=True).violations


def test_a_channel_of_a_plan_is_audited(tmp_path, checkpoints):
    """Fails if the audit takes any channel for right: of a row that has its own, or a number that no channel has."""
    records = [{"id": "a", "audio": call(tmp_path), "language": "en"}, {**row(1, audio=call(tmp_path)), "channel": 1}]
    work = work_of(tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]), channels="split")
    by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    (shard,) = work.plan.shards()
    rows, planned = parts(work), read_shard(work.store, shard)
    assert [each["channel"] for each in rows.to_pylist()] == [0, 1, 1]

    def accused(channels: list[int | None]) -> bool:
        faults = RowFaults(work.plan, planned)
        place = rows.schema.get_field_index("channel")
        faults.add(rows.set_column(place, rows.schema.field(place), pa.array(channels, pa.int32())))
        return Invariant.PLAN_COLUMNS in [invariant for invariant, _ in faults.sentences()]

    assert [accused(each) for each in ([0, 1, 1], [None, None, 1])] == [False, False]
    assert [accused(each) for each in ([0, 1, 0], [0, 1, None], [0, -1, 1])] == [True, True, True]


def test_short_rows_and_whole_files_have_an_utterance_per_channel(tmp_path, checkpoints):
    """Fails if a rule for segments ignores channels: up to 30 s, whole files, or windows."""
    length_s = 4 + 2 * (len(EN) + len(ES)) / SAMPLING_RATE
    windows = int(-(-length_s // 5))
    for number, (flags, count) in enumerate([({}, 2), ({"segmentation": "none"}, 2), ({"window_s": 5.0}, 2 * windows)]):
        records = [{"id": "a", "audio": call(tmp_path), "language": "en"}]
        work = work_of(
            tmp_path / str(number), records, models_of(checkpoints, "mean", ["en"]), channels="split", **flags
        )
        (shard,) = work.plan.shards()
        assert times(prepare(work, shard)) == [(n, n % 2) for n in range(count)]


def test_a_silent_channel_does_not_cost_the_other(tmp_path, checkpoints):
    """Fails if a call in which one side never speaks is rejected, or if a silent recording is not."""
    silence = np.zeros(len(EN), np.float32)
    records = [
        {"id": "one", "audio": written(tmp_path / "one.wav", silence, EN), "language": "en"},
        {"id": "none", "audio": written(tmp_path / "none.wav", silence, silence), "language": "en"},
    ]
    work = work_of(
        tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]), channels="split", segmentation="vad"
    )
    _, finished = by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("NO_SPEECH",)
    assert {(each["recording_id"], each["channel"]) for each in parts(work).to_pylist()} == {("one", 1)}


def test_the_text_of_a_recording_is_that_of_no_channel(tmp_path, checkpoints):
    """Fails if both channels get the text of the whole call; `auto` keeps the text, and with it the recording whole."""
    mono = written(tmp_path / "mono.wav", EN)
    records = [row(0, audio=call(tmp_path, 1)), row(1, audio=mono)]
    expected = {
        "split": [("r0", 0, "heard words", "asr"), ("r0", 1, "heard words", "asr"), ("r1", None, "Sentence 1.", "manifest")],
        "auto": [("r0", None, "Sentence 0.", "manifest"), ("r1", None, "Sentence 1.", "manifest")],
    }  # fmt: skip
    for how, found in expected.items():
        work = work_of(tmp_path / how, records, models_of(checkpoints, "mean", ["en"]), channels=how)
        by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
        names = ("recording_id", "channel", "text", "text_source")
        assert [tuple(each[name] for name in names) for each in parts(work).to_pylist()] == found


def test_auto_splits_calls_alone(tmp_path, checkpoints):
    """Fails if `auto` splits one voice in two channels, or mixes a call."""
    records = [
        {"id": "call", "audio": call(tmp_path), "language": "en"},
        {"id": "voice", "audio": written(tmp_path / "voice.wav", EN, 0.5 * EN), "language": "en"},
    ]
    work = work_of(tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]), channels="auto")
    (shard,) = work.plan.shards()
    assert times(prepare(work, shard)) == [(0, 0), (1, 1), (0, None)]


def test_channels_over_the_budget_are_decoded_again_to_the_same(tmp_path, checkpoints, monkeypatch):
    """Fails if a channel that is decoded a second time is the other one, or their mean."""
    records = [
        {"id": "call", "audio": call(tmp_path), "language": "en"},
        {"id": "voice", "audio": written(tmp_path / "voice.wav", EN, 0.5 * EN), "language": "en"},
    ]
    works = [
        work_of(tmp_path / name, records, models_of(checkpoints, "mean", ["en"]), channels="auto") for name in "ab"
    ]
    by_hand(works[0], FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    monkeypatch.setattr(prepare_module, "PCM_BUDGET_BYTES", 0)
    by_hand(works[1], FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    one, two = (parts(work).to_pylist() for work in works)
    assert len(one) == 3
    for first, second in zip(one, two, strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-6) and first["channel"] == second["channel"]


def test_mixed_rows_are_counted(tmp_path, checkpoints):
    """Fails if a call that is mixed down passes in silence, or a row with its channel, or one voice in two, is counted."""
    voice = written(tmp_path / "voice.wav", EN, EN)
    records = [row(0, audio=call(tmp_path)), row(1, audio=voice), row(2), row(3, audio=call(tmp_path), channel=0)]
    work = work_of(tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    counted: dict[str, float] = {}
    prepare(work, shard, figures=counted)
    assert counted == {"mixed": 1.0}
    (warning,) = report_warnings({"run_id": "000001", "rows_mixed_down": 1})
    assert "run 000001 mixed down 1 rows" in warning and "--channels" in warning
    assert list(report_warnings({"run_id": "000001"})) == []

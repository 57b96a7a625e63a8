"""A manifest of an output's utterances: their spans, ids and channels, here, in NeMo's form and as Lhotse itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.qa import validate_recordings_and_supervisions

from jobs.make_manifest import main
from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.shard.context import Work
from pipeline.storage.store import open_store
from tests.support.corpus import AUDIO, utterances
from tests.support.golden import LONG, PARITY
from tests.support.outputs import finished_output, plan_rows
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, published, work_of

RATES = (8_000, 16_000, 44_100, 48_000)


def speech_of(rate: int, folder: Path, seed: int) -> Path:
    """Three pieces of speech with pauses at this rate; two channels that say different things."""
    chance = np.random.default_rng(seed)
    speech = decode((AUDIO / "en_16k_pcm16.wav").read_bytes())
    silence = np.zeros(SAMPLING_RATE, np.float32)
    left = np.concatenate([p for n in range(3) for p in (silence, speech[: int(chance.integers(30_000, len(speech)))])])
    right = np.concatenate([speech, np.zeros(len(left), np.float32)])[: len(left)]
    both = np.stack([left, right], axis=1)
    steps = np.arange(int(len(both) * rate / SAMPLING_RATE)) * SAMPLING_RATE / rate
    resampled = np.stack([np.interp(steps, np.arange(len(both)), side) for side in both.T], axis=1)
    path = folder / f"{rate}.wav"
    soundfile.write(path, resampled, rate)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory, checkpoints) -> Work:
    """Recordings that are cut, whole, spans, and two channels of one file, at four rates."""
    folder = tmp_path_factory.mktemp("output")
    records: list[dict[str, object]] = [{"id": "long", "audio": str(PARITY / LONG), "speaker": "l", "label": "joy"}]
    for number, rate in enumerate(RATES):
        audio = str(speech_of(rate, folder, number))
        records += [{"id": f"{rate}-left", "audio": audio, "channel": 0, "speaker": "a", "take": 1.5},
                    {"id": f"{rate}-right", "audio": audio, "channel": 1, "speaker": "b", "take": float("inf")},
                    {"id": f"{rate}-span", "audio": audio, "channel": 0, "offset": 1.25, "duration": 2.5}]  # fmt: skip
    for record in records:
        record["language"] = "en"
    work = work_of(folder, records, models_of(checkpoints, "mean", ["en"]), segmentation="vad")
    by_hand(work, FakeTranscriber("en"))
    published(work)
    return work


def spans(rows) -> dict[str, tuple[float, float]]:
    return {row["utterance_id"]: (row["start_s"], row["end_s"]) for row in rows}


def exported(work: Work, out: Path, *options: str) -> list[dict[str, object]]:
    assert main([work.output, "--layout", "output", "--output", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def test_a_row_for_each_utterance(work, tmp_path):
    """Fails if an export of an output gives every utterance of a recording its recording's id, or the start 0."""
    expected = parts(work).to_pylist()
    found = sorted(exported(work, tmp_path / "m.jsonl"), key=lambda row: str(row["id"]))
    assert len(found) == len(expected) > 20 and len({row["id"] for row in found}) == len(found)
    for row, utterance in zip(found, expected, strict=True):
        assert row["id"] == utterance["utterance_id"] and row["audio"] == utterance["audio"]
        assert row["offset"] == utterance["start_s"]
        assert row["offset"] + row["duration"] == pytest.approx(utterance["end_s"], abs=1e-6)
        for name in ("channel", "text", "label", "language", "speaker"):
            assert row.get(name) == utterance[name], name
    assert {row.get("original_label") for row in found if row["id"].startswith("long")} == {"joy"}
    assert {row.get("take") for row in found} == {None, 1.5}, "JSON has no word for infinity"
    assert not {"manifest_label", "confidence", "run_id"} & set().union(*found)


def test_an_export_annotated_again_has_the_same_spans(work, tmp_path, checkpoints):
    """Fails if a span moves by more than a sample on the way out and back in, or a row of the export is rejected."""
    rows = exported(work, tmp_path / "m.jsonl")
    again = work_of(tmp_path / "again", rows, models_of(checkpoints, "mean", ["en"]))
    _, finished = by_hand(again, FakeTranscriber("en", "other words"))
    assert (finished.rejects, finished.utterances) == ((), len(rows))
    first, second = parts(work).to_pylist(), parts(again).to_pylist()
    for one, other in zip(first, second, strict=True):
        assert other["recording_id"] == one["utterance_id"] and other["text"] == one["text"] == "heard words"
        assert other["start_s"] == one["start_s"] and other["channel"] == one["channel"]
        assert abs(other["end_s"] - one["end_s"]) < 2 / SAMPLING_RATE
        assert other["manifest_label"] == one["label"] and other["original_label"] == one["manifest_label"]


def test_lhotse_reads_an_export(work, tmp_path):
    """Fails if Lhotse itself finds another start, duration, id or channel, or other samples, than the output has."""
    assert exported(work, tmp_path / "lhotse", "--to", "lhotse") == []
    recordings = RecordingSet.from_file(tmp_path / "lhotse/recordings.jsonl.gz")
    supervisions = SupervisionSet.from_file(tmp_path / "lhotse/supervisions.jsonl.gz")
    validate_recordings_and_supervisions(recordings, supervisions)
    expected = {row["utterance_id"]: row for row in parts(work).to_pylist()}
    assert len(list(recordings)) == 1 + len(RATES) and {each.id for each in supervisions} == expected.keys()
    for each in supervisions:
        row = expected[each.id]
        assert each.start == row["start_s"] and each.end == pytest.approx(row["end_s"], abs=1e-6)
        assert each.channel == (row["channel"] or 0)
        assert (each.text, each.language, each.custom["label"]) == (row["text"], row["language"], row["label"])
        assert each.speaker == row["speaker"]
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions).trim_to_supervisions(
        keep_overlapping=False
    )
    loaded = 0
    for cut in cuts:
        (supervision,) = cut.supervisions
        row = expected[supervision.id]
        if row["channel"] is None:
            continue
        whole, rate = soundfile.read(row["audio"], dtype="float32", always_2d=True)
        start = round(row["start_s"] * rate)
        mine = whole[start : start + cut.num_samples, row["channel"]]
        np.testing.assert_array_equal(cut.load_audio()[0], mine)
        loaded += 1
    assert loaded > 10


def test_nemo_lines_of_an_export(work, tmp_path):
    """Fails if NeMo's lines lack a span, or are fewer than the utterances."""
    expected = parts(work).to_pylist()
    found = exported(work, tmp_path / "nemo.jsonl", "--to", "nemo")
    assert {row["id"]: (row["offset"], row["lang"], row["text"]) for row in found} == {
        row["utterance_id"]: (row["start_s"], row["language"], row["text"]) for row in expected
    }
    assert all("audio_filepath" in row and row["duration"] > 0 for row in found)


def test_unfinished_runs_are_left_out_and_said(tmp_path, capsys):
    """Fails if rows of a run that is still being written are exported, or go without a word; partition columns too."""
    store = finished_output(str(tmp_path / "out"), tmp_path / "m")
    plan_rows(store, tmp_path / "third", [{"id": "late", "audio": "/a/late.wav", "text": "t", "speaker": "z"}])
    assert main([store.root, "--layout", "output", "--output", str(tmp_path / "m.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == set(utterances(store.root)["utterance_id"].to_pylist())
    assert {row["speaker"] for row in rows} == {"a", "b", "c"}
    assert "left out: 1, a run that is not finished: 000003" in capsys.readouterr().out


def test_texts_without_audio(tmp_path, checkpoints, capsys):
    """Fails if a row that is a text alone is lost from a manifest, or takes another toolkit's manifest down."""
    records = [{"id": "t", "text": "hello", "language": "en"},
               {"id": "u", "text": "again", "language": "en", "audio": str(AUDIO / "en_16k_pcm16.wav")}]  # fmt: skip
    work = work_of(tmp_path, records, models_of(checkpoints, "text", ["en"]), "text")
    by_hand(work)
    published(work)
    text, spoken = exported(work, tmp_path / "ours.jsonl")
    label = parts(work)["label"].to_pylist()
    assert text == {"id": "t#0000", "text": "hello", "label": label[0], "language": "en"}
    assert spoken["offset"] == 0.0 and "duration" not in spoken
    (line,) = exported(work, tmp_path / "nemo.jsonl", "--to", "nemo")
    assert line["id"] == "u#0000" and line["duration"] == pytest.approx(soundfile.info(spoken["audio"]).duration)
    assert "left out: 1, a text without audio: t#0000" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["manifest", "nemo"])
def test_a_part_of_an_output_is_no_manifest(tmp_path, capsys, layout):
    """Fails if a part read as a manifest gives one id for all utterances of a recording, from 0 s on, as it did."""
    part = next(Path(finished_output(str(tmp_path / "out"), tmp_path / "m").root).glob("utterances/*/*.parquet"))
    assert main([str(part), "--layout", layout, "--output", str(tmp_path / "m.jsonl")]) == 2
    assert "--layout output" in capsys.readouterr().err


def test_what_is_no_output_is_refused(tmp_path, work, capsys):
    """Fails if a folder that is no output gives an empty manifest, or two outputs give ids twice."""
    (tmp_path / "empty").mkdir()
    arguments = ["--layout", "output", "--output", str(tmp_path / "m.jsonl")]
    assert main([str(tmp_path / "empty"), *arguments]) == 2 and "no output" in capsys.readouterr().err
    assert main([work.output, work.output, *arguments]) == 2 and "two utterances have the id" in capsys.readouterr().err
    assert not (tmp_path / "m.jsonl").exists() and open_store(work.output).list("_runs")

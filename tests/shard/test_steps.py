"""One shard from plan rows to its part, in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from pipeline.audio.decode import decode
from pipeline.errors import JobError, Reason, RejectedRow, Stage
from pipeline.shard import prepare as prepare_module
from pipeline.shard.commit import finish
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe
from pipeline.shard.work_table import is_committed_elsewhere
from tests.support.golden import CASES, LONG, PARITY, SCORES, SCORES_RESAMPLED
from tests.support.shards import (
    CLIP,
    EMOTION,
    FailingRecogniser,
    FakeTranscriber,
    annotate_shard,
    assert_same,
    by_hand,
    causes,
    committed,
    models_of,
    parts,
    real_recogniser,
    row,
    work_of,
)

# -- parity


@pytest.mark.parametrize("mode", ["audio", "mean", "concat", "multihead", "text"])
def test_scores_are_those_of_the_reference(tmp_path, checkpoints, mode):
    """Fails if plan, fetch, decode, batching or the output table change a score, in either language of one shard each."""
    cases = {c["case"]: c for c in CASES if c["mode"] == mode and c["audio"] != LONG}
    done = 0
    for language in ("en", "es"):
        mine = [c for c in cases.values() if c["language"] == language]
        records = [
            {"id": c["case"], "text": c["text"], "language": language,
             **({"audio": str(PARITY / c["audio"])} if c["audio"] else {})}
            for c in mine
        ]  # fmt: skip
        work = work_of(tmp_path / language, records, models_of(checkpoints, mode, [language]), mode)
        finished = annotate_shard(work, next(work.plan.shards()))
        assert (finished.won, finished.rows, finished.utterances, finished.rejects) == (True, len(mine), len(mine), ())
        for found in parts(work).to_pylist():
            case = cases[found["recording_id"]]
            golden = {EMOTION.get(label, label): score for label, score in case["scores"].items()}
            within = SCORES if case["audio"] is None or "_16k_" in case["audio"] else SCORES_RESAMPLED
            assert {e: found["scores"][e] for e in golden} == pytest.approx(golden, abs=within), case["case"]
            assert [found["scores"][e] for e in found["scores"] if e not in golden] == [None] * (7 - len(golden))
            assert found["label"] == case["label"] and found["emotion"] == EMOTION.get(case["label"], case["label"])
            ranked = sorted(golden.values())
            assert found["confidence"] == pytest.approx(ranked[-1], abs=within)
            assert found["margin"] == pytest.approx(ranked[-1] - ranked[-2], abs=2 * within)
            assert found["text"] == (case["text"] or None) or (mode != "audio" and case["text"] == "")
            assert found["truncated"] == (mode != "audio" and len(case["text"] or "") > 4000)
            done += 1
    assert done == len(cases) >= 5


# -- one row's trouble


@pytest.mark.parametrize("bad", [[3], [0, 6]])
@pytest.mark.parametrize("mode", ["audio", "mean"])
def test_a_row_that_kills_the_model_costs_only_itself(tmp_path, checkpoints, mode, bad):
    """Fails if neighbours of a failing row are rejected too, or get other scores than without it.

    Batches differ where a row is missing, and with them the last bits.
    """
    records = [row(n) for n in range(7)]
    real = real_recogniser(checkpoints, mode)
    failing = FailingRecogniser(real, {f"Sentence {n}." for n in bad}, RuntimeError("sick " * 100))
    work = work_of(tmp_path / "bad", records, models_of(checkpoints, mode, ["en"]), mode)
    _, finished = by_hand(work, recogniser_for=lambda _: failing)
    assert finished.rejects == ("INTERNAL",) * len(bad)
    others = [record for number, record in enumerate(records) if number not in bad]
    good = work_of(tmp_path / "good", others, models_of(checkpoints, mode, ["en"]), mode)
    by_hand(good, recogniser_for=lambda _: real)
    assert_same(parts(work), parts(good))
    assert max(failing.calls) == 7 and len(failing.calls) <= 1 + 2 * 3 * len(bad)


def test_why_a_row_failed_is_written_down(tmp_path, checkpoints):
    """Fails if the reject of an unforeseen failure does not say its type and stage, or holds the whole of a long message."""
    failing = FailingRecogniser(real_recogniser(checkpoints), {"Sentence 1."}, FloatingPointError("not finite " * 100))
    work = work_of(tmp_path, [row(n) for n in range(2)], models_of(checkpoints, "mean", ["en"]))
    table, _ = by_hand(work, recogniser_for=lambda _: failing)
    (failed,) = filter(None, table["reject"].to_pylist())
    assert (failed["reason"], failed["stage"]) == ("INTERNAL", "recognise")
    assert failed["detail"].startswith("FloatingPointError: not finite") and len(failed["detail"]) < 250


def test_a_foreseen_reject_of_the_model_keeps_its_reason(tmp_path, checkpoints):
    """Fails if a typed reject inside a batch becomes INTERNAL, or takes the batch with it."""
    failing = FailingRecogniser(
        real_recogniser(checkpoints), {"Sentence 2."}, RejectedRow(Reason.TOO_SHORT, "short", Stage.RECOGNISE)
    )
    work = work_of(tmp_path, [row(n) for n in range(5)], models_of(checkpoints, "mean", ["en"]))
    _, finished = by_hand(work, recogniser_for=lambda _: failing)
    assert finished.rejects == ("TOO_SHORT",) and finished.utterances == 4


def test_too_many_unforeseen_failures_fail_the_shard(tmp_path, checkpoints):
    """Fails if a sick machine can commit a shard full of INTERNAL rejects."""
    records = [row(n) for n in range(10)]
    for count, sick in ((3, False), (4, True)):
        work = work_of(tmp_path / str(count), records, models_of(checkpoints, "mean", ["en"]))
        failing = FailingRecogniser(
            real_recogniser(checkpoints), {f"Sentence {n}." for n in range(count)}, RuntimeError("boom")
        )
        if sick:
            with pytest.raises(
                JobError, match=r"4 of 10 rows of shard 000001-000000 failed .*: INTERNAL, RuntimeError: boom"
            ):
                by_hand(work, recogniser_for=lambda _, s=failing: s)
            assert not committed(work)
        else:
            assert by_hand(work, recogniser_for=lambda _, s=failing: s)[1].won


def test_a_shard_of_rejects_alone_is_committed(tmp_path, checkpoints):
    """Fails if a shard without an utterance has no part: its run would never end."""
    work = work_of(tmp_path, [row(n, audio=f"/gone/{n}.wav") for n in range(5)], models_of(checkpoints, "mean", ["en"]))
    finished = annotate_shard(work, next(work.plan.shards()))
    assert (finished.won, finished.utterances, len(finished.rejects)) == (True, 0, 5)
    assert len(committed(work)) == 1 and parts(work).num_rows == 0


def test_of_two_attempts_one_wins(tmp_path, checkpoints):
    """Fails if a retried shard writes a second part, or says it won."""
    work = work_of(tmp_path, [row(0)], models_of(checkpoints, "mean", ["en"]))
    first, second = by_hand(work)[1], by_hand(work)[1]
    assert (first.won, second.won) == (True, False) and len(committed(work)) == 1


# -- what is opened


def test_a_shard_that_another_run_committed_is_not_done_again(tmp_path, checkpoints):
    """Fails if a run fetches, decodes and recognises what is there already, or takes the shard for its own."""
    work = work_of(tmp_path, [row(0), row(1)], models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    annotate_shard(work, shard)
    (before,) = committed(work)
    content = before.read_bytes()
    table = prepare(work, shard)
    assert is_committed_elsewhere(table) and table.num_rows == 0
    table = transcribe(work, shard, table, lambda _: pytest.fail("nothing to hear"))
    table = recognise(work, shard, table, lambda _: pytest.fail("nothing to recognise"))
    finished = finish(work, shard, table, {})
    assert (finished.won, finished.rows, finished.utterances, finished.rejects) == (False, 2, 0, ())
    assert [path.read_bytes() for path in committed(work)] == [content]


def test_mode_text_opens_no_audio(tmp_path, checkpoints, monkeypatch):
    """Fails if a text run with texts needs its audio, so that a bucket that is gone or a slow disk matters."""
    monkeypatch.setattr(prepare_module, "load_recording", lambda *_: pytest.fail("audio was opened"))
    records = [
        row(0, audio="/gone/a.wav"),
        row(1, offset=2.0, duration=3.5),
        {"id": "r2", "text": "No audio.", "language": "en"},
    ]
    work = work_of(tmp_path, records, models_of(checkpoints, "text", ["en"]), "text")
    _, finished = by_hand(work)
    assert finished.rejects == () and finished.utterances == 3
    found = parts(work).select(["audio", "start_s", "end_s", "duration_s", "text_source"]).to_pylist()
    assert [(r["start_s"], r["end_s"], r["duration_s"]) for r in found] == [
        (0.0, None, None),
        (2.0, 5.5, 3.5),
        (0.0, None, None),
    ]
    assert found[2]["audio"] is None and {r["text_source"] for r in found} == {"manifest"}


def test_mode_text_without_audio_and_language(tmp_path, checkpoints):
    """Fails if a row whose language must be heard, and which has no audio to hear it from, is looked for at `None`."""
    records = [{"id": "r0", "text": "No audio, no language."}]
    work = work_of(tmp_path, records, models_of(checkpoints, "text", ["en"]), "text", language="auto")
    table, finished = by_hand(work, FakeTranscriber("en"))
    assert len(finished.rejects) == 1 and "None" not in causes(table, "detail")[0]


def test_mode_audio_asks_for_no_text(tmp_path, checkpoints):
    """Fails if mode audio runs speech recognition, or invents a text source."""
    work = work_of(tmp_path, [row(0, text=None)], models_of(checkpoints, "audio", ["en"]), "audio")
    silent = FakeTranscriber("en")
    by_hand(work, silent)
    (found,) = parts(work).to_pylist()
    assert (found["text"], found["text_source"], silent.asked) == (None, "none", [])
    assert not {"text_embedding"} & set(found)


# -- budget


@pytest.mark.parametrize("budget", [0, 150_000])
def test_recordings_over_the_budget_are_decoded_again_to_the_same(tmp_path, checkpoints, monkeypatch, budget):
    """Fails if a recording that travels without its audio gives another row than one that carries it."""
    long = str(PARITY / LONG)
    records = [
        row(0), row(1, offset=0.25, duration=1.0), row(2, audio=str(PARITY / "audio/en_8k_mulaw.wav")),
        row(3, audio=long, text=None, offset=3.0, duration=31.0), row(4, audio=str(PARITY / "audio/en_48k_24bit.flac")),
    ]  # fmt: skip
    records = [r for r in records if Path(str(r["audio"])).exists()]
    heard = FakeTranscriber("en")
    one = work_of(tmp_path / "one", records, models_of(checkpoints, "mean", ["en"]))
    table, _ = by_hand(one, heard, lambda _: real_recogniser(checkpoints))
    assert table.num_rows > len(records), "the long recording was to be cut"
    monkeypatch.setattr(prepare_module, "PCM_BUDGET_BYTES", budget)
    two = work_of(tmp_path / "two", records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = two.plan.shards()
    assert prepare(two, shard)["waveform"].null_count > 0
    _, finished = by_hand(two, heard, lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ()
    assert_same(parts(two), parts(one))
    half = len(heard.asked) // 2
    assert heard.asked[:half] == heard.asked[half:]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("happens", "reason"), [(Path.unlink, "NOT_FOUND"), (flip_a_bit, "CHANGED")])
def test_a_recording_that_is_gone_or_another_the_second_time(tmp_path, checkpoints, monkeypatch, happens, reason):
    """Fails if what happens to a file between two decodings takes the shard down, leaves half a recording in the output, or
    brings the words of one object and the emotion of another into one row.
    """
    clip = tmp_path / "a.wav"
    clip.write_bytes(Path(CLIP).read_bytes())
    monkeypatch.setattr(prepare_module, "PCM_BUDGET_BYTES", 0)
    work = work_of(tmp_path, [row(0), row(1, audio=str(clip))], models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    happens(clip)
    finished = finish(work, shard, recognise(work, shard, table, lambda _: real_recogniser(checkpoints)), {})
    assert finished.rejects == (reason,) and finished.utterances == 1


# -- spans and channels


@pytest.fixture
def stereo(tmp_path: Path) -> str:
    """Two different recordings side by side."""
    left = decode(Path(CLIP).read_bytes())
    right = decode((PARITY / "audio" / "es_16k_pcm16.wav").read_bytes())
    count = min(len(left), len(right))
    soundfile.write(tmp_path / "stereo.wav", np.stack([left[:count], right[:count]], axis=1), 16_000, subtype="FLOAT")
    for name, samples in (("left", left), ("right", right)):
        soundfile.write(tmp_path / f"{name}.wav", samples[:count], 16_000, subtype="FLOAT")
    return str(tmp_path / "stereo.wav")


def test_channels_are_recordings_of_their_own(tmp_path, checkpoints, stereo):
    """Fails if `channel` is ignored, or the mean is taken where one channel was asked for."""
    folder = Path(stereo).parent
    records = [
        row("0", audio=stereo, channel=0), row("1", audio=stereo, channel=1), row("2", audio=stereo),
        row("left", audio=str(folder / "left.wav")), row("right", audio=str(folder / "right.wav")),
        row("none", audio=stereo, channel=2),
    ]  # fmt: skip
    for record in records:
        record["text"] = "the same"
    work = work_of(tmp_path / "w", records, models_of(checkpoints, "mean", ["en"]))
    _, finished = by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    found = {r["recording_id"]: r for r in parts(work).to_pylist()}
    assert finished.rejects == ("BAD_CHANNEL",)
    for channel, alone in (("r0", "rleft"), ("r1", "rright")):  # places in a batch may differ in the last bits
        assert found[channel]["scores"] == pytest.approx(found[alone]["scores"], abs=1e-6)
        assert found["r2"]["scores"] != pytest.approx(found[channel]["scores"], abs=1e-6)
    assert [found[i]["channel"] for i in ("r0", "r1", "r2")] == [0, 1, None]


def test_spans_say_where_they_lie_in_the_recording(tmp_path, checkpoints):
    """Fails if times are of the span instead of the recording, or the span is not what was heard."""
    whole = decode(Path(CLIP).read_bytes())
    length_s = len(whole) / 16_000
    records = [
        row(0),
        row(1, offset=0.5, duration=1.0),
        row(2, offset=0.5),
        row(3, duration=0.75),
        row(4, offset=99.0, duration=1.0),
    ]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    packed = table.select(["waveform", "sample_bytes"]).to_pylist()
    lengths = [len(line["waveform"] or b"") // (line["sample_bytes"] or 1) for line in packed]
    assert lengths[1:4] == [16_000, len(whole) - 8_000, 12_000]
    _, finished = by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("BAD_SPAN",)
    found = parts(work).to_pylist()
    times = [(r["start_s"], r["end_s"], r["duration_s"]) for r in found]
    expected = [(0.0, length_s, length_s), (0.5, 1.5, 1.0), (0.5, length_s, length_s - 0.5), (0.0, 0.75, 0.75)]
    assert np.array(times) == pytest.approx(np.array(expected), abs=1e-4)
    assert finished.audio_s == pytest.approx(sum(r["duration_s"] for r in found))


# -- pass-through


def test_manifest_columns_are_the_manifests(tmp_path, checkpoints):
    """Fails if a pass-through column is overwritten by one of ours of the same name, `row` above all."""
    names = ["row", "raw", "reason", "waveform", "label", "confidence", "shard", "_shard", "scores", "Text"]
    names = [name for name in names if name not in ("raw", "Text")]
    records = [row(n, **dict.fromkeys(names, f"mine {n}")) for n in range(3)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    found = parts(work)
    for name in work.plan.extra.names:
        assert found[name].to_pylist() == [f"mine {n}" for n in range(3)], name
    assert len(work.plan.extra.names) == len(names)


def test_partition_columns_stand_in_the_path_alone(tmp_path, checkpoints):
    """Fails if readers find a partition column twice, or the folder has another value than the rows."""
    records = [row(n, speaker="a/b", take=7) for n in range(2)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]), partition_by="speaker,take,language",
                   embeddings="fused", embedding_dtype="float16")  # fmt: skip
    by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    (part,) = committed(work)
    assert part.parent == Path(work.output) / "utterances/speaker=a%2Fb/take=7/language=en"
    table = parts(work)
    assert (
        table.select(["speaker", "take", "language"]).to_pylist()
        == [{"speaker": "a/b", "take": 7, "language": "en"}] * 2
    )
    assert table.schema.field("fused_embedding").type.value_type == pa.float16()
    assert "audio_embedding" not in table.column_names


# -- with real speech recognition


def test_the_whole_of_a_shard_with_its_own_models(tmp_path, checkpoints, asr):
    """Fails if `annotate_shard` does not transcribe what has no text, in either language, with the plan's own models."""
    records = [
        row(0), {"id": "r1", "audio": CLIP, "language": "en"},
        {"id": "r2", "audio": str(PARITY / "audio/es_16k_pcm16.wav"), "language": "es"},
    ]  # fmt: skip
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en", "es"], asr))
    for shard in work.plan.shards():
        assert annotate_shard(work, shard).won
    found = parts(work).to_pylist()
    assert [r["text_source"] for r in found] == ["manifest", "asr", "asr"]
    assert [r["text"] != "" for r in found] == [True] * 3
    assert [r["asr_avg_logprob"] is not None for r in found] == [False, True, True]


def test_windows_make_a_timeline(tmp_path, checkpoints):
    """Fails if a window is left out, has another's scores, or those of the whole recording."""
    audio = models_of(checkpoints, "audio", ["en"])
    record = {"id": "r", "audio": CLIP, "language": "en"}
    work = work_of(tmp_path / "windows", [record], audio, "audio", window_s=1.0, hop_s=0.5)
    by_hand(work)
    found = parts(work).to_pylist()
    length_s = len(decode(Path(CLIP).read_bytes())) / 16_000
    starts = [*np.arange(0, length_s - 1, 0.5), length_s - 1]
    assert [row["start_s"] for row in found] == pytest.approx(starts, abs=1e-4)
    assert [row["end_s"] for row in found] == pytest.approx([start + 1 for start in starts], abs=1e-4)
    spans = [{**record, "id": str(n), "offset": row["start_s"], "duration": 1.0} for n, row in enumerate(found)]
    alone = work_of(tmp_path / "alone", spans, audio, "audio")
    by_hand(alone)
    expected = sorted(parts(alone).to_pylist(), key=lambda row: int(row["recording_id"]))
    for window, span in zip(found, expected, strict=True):
        assert window["scores"] == pytest.approx(span["scores"], abs=1e-4)

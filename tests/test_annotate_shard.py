"""One shard from plan rows to its part, in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import soundfile

from pipeline import annotate as annotate_module
from pipeline.annotate import annotate_shard, prepare, recognise, transcribe
from pipeline.audio.decode import decode
from pipeline.config import load_config
from pipeline.errors import JobError, Reason, RejectedRow, Stage
from pipeline.finish import finish
from pipeline.models import slots
from pipeline.models.transcribe import Transcript
from pipeline.plan import ShardSize, write_plan
from pipeline.roots import AudioRoots
from pipeline.spool import Spool, id_keys
from pipeline.storage import LocalStore
from pipeline.work import Work
from tests.golden import CASES, LONG, PARITY, SCORES, SCORES_RESAMPLED
from tests.manifests import jsonl

pytestmark = pytest.mark.usefixtures("one_thread")
EMOTION = {"angry": "anger", "happy": "joy", "sad": "sadness"}
CLIP = str(PARITY / "audio" / "en_16k_pcm16.wav")


@cache
def pinned(chosen: tuple[tuple[str, str], ...], mode: str) -> tuple[dict[str, Any], dict[str, int]]:
    return slots.pin(dict(chosen), mode)


def models_of(checkpoints: Path, mode: str, languages: Sequence[str], asr: Path | None = None) -> dict[str, str]:
    chosen = {}
    for language in languages:
        chosen[f"fusion/{language}"] = str(checkpoints / f"{mode}-{language}")
        if mode in ("mean", "concat", "multihead"):
            chosen[f"sentence_encoder/{language}"] = str(checkpoints / f"bert-{language}")
        if asr is not None:
            chosen[f"asr/{language}"] = str(asr)
    return chosen


def work_of(
    folder: Path, records: Sequence[dict[str, object]], chosen: dict[str, str], mode: str = "mean", **flags: object
) -> Work:
    """A plan of one shard at `folder/out`, as the driver would make it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jsonl(folder / "m.jsonl", *records)
    config = load_config(None, {"manifest": [str(manifest)], "output": str(folder / "out"), "mode": mode, **flags})
    spool = Spool(folder)
    spool.read([str(manifest)], lambda rows: (rows, {}), audio_optional=mode == "text")
    models, widths = pinned(tuple(sorted(chosen.items())), mode)
    plan = write_plan(
        LocalStore(folder / "out"), 1, spool.select(id_keys([]), id_keys([])),
        settings=config.settings(precision="fp32", asr_compute_type="float32"), models=models,
        embedding_widths={name: width for name, width in widths.items() if name in config.embeddings},
        manifests=[str(manifest)], size=ShardSize(1000, 1e9), needs_text=mode != "audio",
    )  # fmt: skip
    assert plan is not None
    return Work(str(folder / "out"), plan, AudioRoots.parse((), [str(manifest)]))


def parts(work: Work) -> pa.Table:
    table = ds.dataset(f"{work.output}/utterances", partitioning="hive").to_table()
    return table.sort_by("utterance_id")


def committed(work: Work) -> list[Path]:
    return [path for path in Path(work.output, "utterances").rglob("*") if path.is_file()]


def by_hand(
    work: Work, transcriber: object | None = None, recogniser_for: Callable[[str], object] | None = None
) -> tuple[pa.Table, Any]:
    """The steps with models of one's own. Returns the recognised table and what finish says."""
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    if transcriber is not None:
        table = transcribe(work, shard, table, lambda _language: transcriber)
    if recogniser_for is None:
        recogniser_for = slots.Loaded(work.plan.models, settings=work.plan.settings, device="cpu").recogniser_for
    table = recognise(work, shard, table, recogniser_for)
    return table, finish(work, shard, table, {})


def assert_same(one: pa.Table, two: pa.Table) -> None:
    """The same rows; scores and embeddings as near as other batches of texts leave them."""
    assert one.schema.equals(two.schema) and one.num_rows == two.num_rows > 0
    near = ["scores", "confidence", "margin", "audio_embedding", "text_embedding", "fused_embedding"]
    near = [name for name in near if name in one.column_names]
    assert one.drop_columns(near).equals(two.drop_columns(near))
    for name in near:
        values = [table[name].to_pylist() for table in (one, two)]
        if name == "scores":
            values = [[list(scores.values()) for scores in column] for column in values]
        np.testing.assert_allclose(*(np.array(column, dtype=float) for column in values), atol=1e-5, err_msg=name)


def row(number: int | str, audio: str = CLIP, **more: object) -> dict[str, object]:
    return {"id": f"r{number}", "audio": audio, "text": f"Sentence {number}.", "language": "en", **more}


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


class _Spiteful:
    """The real recogniser, except that it dies of one text."""

    def __init__(self, real: object, texts: set[str], error: Exception) -> None:
        self.real, self.texts, self.error = real, texts, error
        self.calls: list[int] = []

    def recognise(self, waveforms, texts):
        self.calls.append(len(texts))
        if self.texts & set(texts):
            raise self.error
        return self.real.recognise(waveforms, texts)


@cache
def real_recogniser(checkpoints: Path, mode: str = "mean"):
    models, _ = pinned(tuple(sorted(models_of(checkpoints, mode, ["en"]).items())), mode)
    settings = load_config(None, {"manifest": ["m"], "output": "o", "mode": mode}).settings(
        precision="fp32", asr_compute_type="float32"
    )
    return slots.Loaded(models, settings=settings, device="cpu").recogniser_for("en")


@pytest.mark.parametrize("bad", [[3], [0, 6]])
@pytest.mark.parametrize("mode", ["audio", "mean"])
def test_a_row_that_kills_the_model_costs_only_itself(tmp_path, checkpoints, mode, bad):
    """Fails if neighbours of a failing row are rejected too, or get other scores than without it.

    Audio runs one by one on CPU, so its scores are equal to the bit; texts run in batches.
    """
    records = [row(n) for n in range(7)]
    real = real_recogniser(checkpoints, mode)
    spiteful = _Spiteful(real, {f"Sentence {n}." for n in bad}, RuntimeError("sick " * 100))
    work = work_of(tmp_path / "bad", records, models_of(checkpoints, mode, ["en"]), mode)
    _, finished = by_hand(work, recogniser_for=lambda _: spiteful)
    assert finished.rejects == ("INTERNAL",) * len(bad)
    others = [record for number, record in enumerate(records) if number not in bad]
    good = work_of(tmp_path / "good", others, models_of(checkpoints, mode, ["en"]), mode)
    by_hand(good, recogniser_for=lambda _: real)
    assert_same(parts(work), parts(good))
    assert mode != "audio" or parts(work).equals(parts(good))
    assert max(spiteful.calls) == 7 and len(spiteful.calls) <= 1 + 2 * 3 * len(bad)


def test_why_a_row_failed_is_written_down(tmp_path, checkpoints):
    """Fails if the reject of an unforeseen failure does not say its type and stage, or holds the whole of a long message."""
    spiteful = _Spiteful(real_recogniser(checkpoints), {"Sentence 1."}, FloatingPointError("not finite " * 100))
    work = work_of(tmp_path, [row(n) for n in range(2)], models_of(checkpoints, "mean", ["en"]))
    table, _ = by_hand(work, recogniser_for=lambda _: spiteful)
    (failed,) = table.filter(pc.is_valid(table["reason"])).to_pylist()
    assert (failed["reason"], failed["stage"]) == ("INTERNAL", "recognise")
    assert failed["detail"].startswith("FloatingPointError: not finite") and len(failed["detail"]) < 250


def test_a_foreseen_reject_of_the_model_keeps_its_reason(tmp_path, checkpoints):
    """Fails if a typed reject inside a batch becomes INTERNAL, or takes the batch with it."""
    spiteful = _Spiteful(
        real_recogniser(checkpoints), {"Sentence 2."}, RejectedRow(Reason.TOO_SHORT, "short", Stage.RECOGNISE)
    )
    work = work_of(tmp_path, [row(n) for n in range(5)], models_of(checkpoints, "mean", ["en"]))
    _, finished = by_hand(work, recogniser_for=lambda _: spiteful)
    assert finished.rejects == ("TOO_SHORT",) and finished.utterances == 4


def test_too_many_unforeseen_failures_fail_the_shard(tmp_path, checkpoints):
    """Fails if a sick machine can commit a shard full of INTERNAL rejects."""
    records = [row(n) for n in range(10)]
    for count, sick in ((3, False), (4, True)):
        work = work_of(tmp_path / str(count), records, models_of(checkpoints, "mean", ["en"]))
        spiteful = _Spiteful(
            real_recogniser(checkpoints), {f"Sentence {n}." for n in range(count)}, RuntimeError("boom")
        )
        if sick:
            with pytest.raises(JobError, match="4 of 10 rows of shard 000001-000000 failed: RuntimeError: boom"):
                by_hand(work, recogniser_for=lambda _, s=spiteful: s)
            assert not committed(work)
        else:
            assert by_hand(work, recogniser_for=lambda _, s=spiteful: s)[1].won


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


def test_mode_text_opens_no_audio(tmp_path, checkpoints, monkeypatch):
    """Fails if a text run with texts needs its audio, so that a bucket that is gone or a slow disk matters."""
    monkeypatch.setattr(annotate_module, "load_waveform", lambda *_: pytest.fail("audio was opened"))
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
    table, finished = by_hand(work, _FakeTranscriber("en"))
    assert len(finished.rejects) == 1 and "None" not in table["detail"][0].as_py()


def test_mode_audio_asks_for_no_text(tmp_path, checkpoints):
    """Fails if mode audio runs speech recognition, or invents a text source."""
    work = work_of(tmp_path, [row(0, text=None)], models_of(checkpoints, "audio", ["en"]), "audio")
    silent = _FakeTranscriber("en")
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
    heard = _FakeTranscriber("en")
    one = work_of(tmp_path / "one", records, models_of(checkpoints, "mean", ["en"]))
    table, _ = by_hand(one, heard, lambda _: real_recogniser(checkpoints))
    assert table.num_rows > len(records), "the long recording was to be cut"
    monkeypatch.setattr(annotate_module, "PCM_BUDGET_BYTES", budget)
    two = work_of(tmp_path / "two", records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = two.plan.shards()
    assert prepare(two, shard)["waveform"].null_count > 0
    _, finished = by_hand(two, heard, lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ()
    assert_same(parts(two), parts(one))
    half = len(heard.asked) // 2
    assert heard.asked[:half] == heard.asked[half:]


def test_a_recording_that_is_gone_the_second_time(tmp_path, checkpoints, monkeypatch):
    """Fails if a file deleted between two decodings takes the shard down, or leaves half a recording in the output."""
    clip = tmp_path / "a.wav"
    clip.write_bytes(Path(CLIP).read_bytes())
    monkeypatch.setattr(annotate_module, "PCM_BUDGET_BYTES", 0)
    work = work_of(tmp_path, [row(0), row(1, audio=str(clip))], models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    clip.unlink()
    finished = finish(work, shard, recognise(work, shard, table, lambda _: real_recogniser(checkpoints)), {})
    assert finished.rejects == ("NOT_FOUND",) and finished.utterances == 1


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
    assert found["r0"]["scores"] == found["rleft"]["scores"] and found["r1"]["scores"] == found["rright"]["scores"]
    assert found["r2"]["scores"] not in (found["r0"]["scores"], found["r1"]["scores"])
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
    lengths = [len(w or b"") // 4 for w in table["waveform"].to_pylist()]
    assert lengths[1:4] == [16_000, len(whole) - 8_000, 12_000]
    _, finished = by_hand(work, recogniser_for=lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("BAD_SPAN",)
    found = parts(work).to_pylist()
    times = [(r["start_s"], r["end_s"], r["duration_s"]) for r in found]
    expected = [(0.0, length_s, length_s), (0.5, 1.5, 1.0), (0.5, length_s, length_s - 0.5), (0.0, 0.75, 0.75)]
    assert np.array(times) == pytest.approx(np.array(expected), abs=1e-4)
    assert finished.audio_s == pytest.approx(sum(r["duration_s"] for r in found))


# -- language


class _FakeTranscriber:
    """Hears one language and one sentence in everything."""

    def __init__(self, language: str | None, text: str = "heard words") -> None:
        self.language, self.text = language, text
        self.asked: list[tuple[int, str | None]] = []

    def transcribe(self, waveform, language):
        self.asked.append((len(waveform), language))
        return Transcript(self.text, language or self.language, -0.5, 0.1, 1.25)


def test_a_language_that_is_heard(tmp_path, checkpoints):
    """Fails if a detected language does not choose the model, replaces a given text, or is asked for where it is known."""
    records = [
        {"id": "r0", "audio": CLIP}, {"id": "r1", "audio": CLIP, "text": "mine"},
        {"id": "r2", "audio": CLIP, "language": "en-GB"}, {"id": "r3", "audio": CLIP, "language": "en", "text": "mine"},
    ]  # fmt: skip
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en", "es"]), language="auto")
    shards = list(work.plan.shards())
    spanish = _FakeTranscriber("es")
    loaded = slots.Loaded(work.plan.models, settings=work.plan.settings, device="cpu")
    for shard in shards:
        table = transcribe(work, shard, prepare(work, shard), lambda _: spanish)
        finish(work, shard, recognise(work, shard, table, loaded.recogniser_for), {})
    found = parts(work).to_pylist()
    assert [r["language"] for r in found] == ["es", "es", "en-GB", "en"]
    assert [r["text"] for r in found] == ["heard words", "mine", "heard words", "mine"]
    assert [r["text_source"] for r in found] == ["asr", "manifest", "asr", "manifest"]
    assert [r["asr_avg_logprob"] for r in found] == [-0.5, None, -0.5, None]
    assert [r["model"][:8] for r in found] == ["mean-es:", "mean-es:", "mean-en:", "mean-en:"]
    assert [language for _, language in spanish.asked] == [None, None, "en"]


def test_a_heard_language_without_a_model_is_rejected(tmp_path, checkpoints):
    """Fails if a detected language that no emotion model knows takes another's model or fails the shard."""
    work = work_of(tmp_path, [{"id": "r0", "audio": CLIP}], models_of(checkpoints, "mean", ["en"]), language="auto")
    table, finished = by_hand(work, _FakeTranscriber("fr"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("UNSUPPORTED_LANGUAGE",) and finished.utterances == 0
    assert "'fr'" in table["detail"][0].as_py() and "--fusion-model fr=X" in table["detail"][0].as_py()


def test_silence_has_no_language(tmp_path, checkpoints):
    """Fails if the reject of a recording in which nobody speaks advises a model for the language `None`."""
    work = work_of(tmp_path, [{"id": "r0", "audio": CLIP}], models_of(checkpoints, "mean", ["en"]), language="auto")
    table, finished = by_hand(work, _FakeTranscriber(None, ""), lambda _: real_recogniser(checkpoints))
    assert len(finished.rejects) == 1
    assert "None" not in table["detail"][0].as_py()


def test_a_transcriber_that_dies_of_one_row(tmp_path, checkpoints):
    """Fails if one utterance's failure in speech recognition is another's, or one of a recording leaves the others behind."""

    class Moody(_FakeTranscriber):
        def transcribe(self, waveform, language):
            if len(self.asked) == 1:
                self.asked.append((0, None))
                raise MemoryError("once")
            return super().transcribe(waveform, language)

    records = [row(n, text=None) for n in range(3)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    table, finished = by_hand(work, Moody("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("INTERNAL",) and parts(work)["recording_id"].to_pylist() == ["r0", "r2"]
    assert table["stage"].to_pylist() == [None, "transcribe", None]


def test_half_a_recording_is_not_written(tmp_path, checkpoints):
    """Fails if one failed utterance leaves the others of its recording in the output, where they look like the whole."""
    records = [row(0, audio=str(PARITY / LONG), text=None, duration=31.0), row(1)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))

    class Second(_FakeTranscriber):
        def transcribe(self, waveform, language):
            if len(self.asked) == 1:
                self.text = "the second"
            found = super().transcribe(waveform, language)
            self.text = "other"
            return found

    spiteful = _Spiteful(real_recogniser(checkpoints), {"the second"}, RuntimeError("boom"))
    table, finished = by_hand(work, Second("en"), lambda _: spiteful)
    assert table.num_rows > 2
    assert finished.rejects == ("INTERNAL",) and parts(work)["recording_id"].to_pylist() == ["r1"]


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

"""A shard whose texts or languages are heard, step by step, without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile

from pipeline.dataset.verify.audit import audit
from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.models import roles
from pipeline.models.whisper import WhisperTranscriber
from pipeline.shard import prepare as prepare_module
from pipeline.shard import work_table as work_table_module
from pipeline.shard.commit import finish
from pipeline.shard.crashes import MOST_DEATHS, CrashTracker, LocalWatch
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe
from tests.shard.test_crashes import Death
from tests.support.corpus import ROOT
from tests.support.golden import LONG, PARITY
from tests.support.shards import (
    CLIP,
    FailingRecogniser,
    FakeTranscriber,
    by_hand,
    causes,
    models_of,
    parts,
    published,
    real_recogniser,
    row,
    work_of,
)

# -- language


def test_a_language_that_is_heard(tmp_path, checkpoints):
    """Fails if a detected language does not choose the model, replaces a given text, or is asked for where it is known."""
    records = [
        {"id": "r0", "audio": CLIP}, {"id": "r1", "audio": CLIP, "text": "mine"},
        {"id": "r2", "audio": CLIP, "language": "en-GB"}, {"id": "r3", "audio": CLIP, "language": "en", "text": "mine"},
    ]  # fmt: skip
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en", "es"]), language="auto")
    shards = list(work.plan.shards())
    spanish = FakeTranscriber("es")
    loaded = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu")
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
    table, finished = by_hand(work, FakeTranscriber("fr"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("UNSUPPORTED_LANGUAGE",) and finished.utterances == 0
    assert "'fr'" in causes(table, "detail")[0] and "--emotion-model fr=X" in causes(table, "detail")[0]


@pytest.mark.parametrize("duration_s", [3, 40])
def test_silence_is_not_put_to_whisper(tmp_path, checkpoints, duration_s):
    """Fails if silence, hum or noise reaches Whisper, which would write words for it, or gets confidence figures."""
    chance, seconds = np.random.default_rng(7), np.arange(16_000 * duration_s) / 16_000
    nothing = [np.zeros_like(seconds), np.full_like(seconds, 0.3), 0.3 * np.sin(2 * np.pi * 50 * seconds),
               chance.normal(0, 0.05, len(seconds))]  # fmt: skip
    records = [row("speech", text=None)]
    for number, waveform in enumerate(nothing):
        soundfile.write(tmp_path / f"{number}.wav", waveform, 16_000)
        records.append(row(number, audio=str(tmp_path / f"{number}.wav"), text=None))
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]), segmentation="none")
    heard = FakeTranscriber("en")
    table, _ = by_hand(work, heard, lambda _: real_recogniser(checkpoints))
    assert len(heard.asked) == 1  # the control: who speaks is heard
    quiet = table.filter(pc.field("row") > 0).to_pylist()
    assert len(quiet) == len(nothing)
    assert {(line["text"], line["text_source"], line["asr_avg_logprob"]) for line in quiet} == {("", "asr", None)}


@pytest.mark.parametrize("mode", ["mean", "audio"])
@pytest.mark.parametrize("segmentation", ["auto", "none"])
def test_a_clip_without_voice_has_no_emotion(tmp_path, checkpoints, mode, segmentation):
    """Fails if a sine tone is labelled, a text of the manifest is not trusted, or --segmentation none has the rule."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(64_000) / 16_000)
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    tone_row = {"audio": str(tmp_path / "tone.wav")}
    records = [row("speech", text=None), row("tone", text=None, **tone_row), row("told", text="words", **tone_row)]
    work = work_of(tmp_path, records, models_of(checkpoints, mode, ["en"]), mode=mode, segmentation=segmentation)
    transcriber = None if mode == "audio" else FakeTranscriber("en")
    _, finished = by_hand(work, transcriber)
    rows = {each["recording_id"][1:]: each for each in parts(work).to_pylist()}
    reasons = {name: each["emotion_null_reason"] for name, each in rows.items()}
    silent = segmentation != "none"
    assert finished.utterances == 3 and reasons == {
        "speech": None, "tone": "no_speech" if silent else None, "told": None,
    }  # fmt: skip
    assert [rows["tone"][name] is None for name in ("label", "emotion", "scores", "model", "audio_embedding")] == [
        silent
    ] * 5
    if mode == "mean":
        assert {name: each["asr_flag"] for name, each in rows.items()} == {
            "speech": "none", "tone": "silence", "told": None,
        }  # fmt: skip
    assert audit(published(work), deep=True).status == "sound"


def test_loops_are_cut_in_new_datasets(tmp_path, checkpoints):
    """Fails if a text that repeats itself is written as it is, or changed where the dataset has no flag for it."""
    loop = "I am sorry " * 40
    for name, flags in (("new", {}), ("whole", {"segmentation": "none"})):
        work = work_of(tmp_path / name, [row(0, text=None)], models_of(checkpoints, "mean", ["en"]), **flags)
        looping = FakeTranscriber("en")
        looping.text = loop
        by_hand(work, looping, lambda _: real_recogniser(checkpoints))
        (line,) = parts(work).to_pylist()
        assert (line["text"].strip(), line["asr_flag"]) == ("I am sorry" if name == "new" else loop.strip(), "loop")


def test_silence_has_no_language(tmp_path, checkpoints):
    """Fails if the reject of a recording in which nobody speaks advises a model for the language `None`."""
    soundfile.write(tmp_path / "silence.wav", np.zeros(48_000), 16_000)
    record = {"id": "r0", "audio": str(tmp_path / "silence.wav")}
    work = work_of(tmp_path, [record], models_of(checkpoints, "mean", ["en"]), language="auto")
    table, finished = by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("NO_SPEECH",)
    assert "None" not in causes(table, "detail")[0]


def test_a_transcriber_that_dies_of_one_row(tmp_path, checkpoints):
    """Fails if one utterance's failure in speech recognition is another's, or one of a recording leaves the others behind."""

    class Moody(FakeTranscriber):
        def transcribe(self, waveform, language):
            if len(waveform) == 16_000:
                raise MemoryError("this one")
            return super().transcribe(waveform, language)

    records = [row(0, text=None), row(1, text=None, duration=1.0), row(2, text=None)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    table, finished = by_hand(work, Moody("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("OUT_OF_MEMORY",) and parts(work)["recording_id"].to_pylist() == ["r0", "r2"]
    assert causes(table, "stage") == [None, "transcribe", None]


def test_half_a_recording_is_not_written(tmp_path, checkpoints):
    """Fails if one failed utterance leaves the others of its recording in the output, where they look like the whole."""
    records = [row(0, audio=str(PARITY / LONG), text=None, duration=31.0), row(1)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))

    class Second(FakeTranscriber):
        def transcribe(self, waveform, language):
            if len(self.asked) == 1:
                self.text = "the second"
            found = super().transcribe(waveform, language)
            self.text = "other"
            return found

    failing = FailingRecogniser(real_recogniser(checkpoints), {"the second"}, RuntimeError("boom"))
    table, finished = by_hand(work, Second("en"), lambda _: failing)
    assert table.num_rows > 2
    assert finished.rejects == ("INTERNAL",) and parts(work)["recording_id"].to_pylist() == ["r1"]


# -- several recordings in one pass


class Choosy:
    """The real transcriber, which dies of waveforms of one length; counts what it is given."""

    def __init__(self, asr, num_samples: int = 0, error: BaseException | None = None) -> None:
        self._real = WhisperTranscriber(asr, device="cpu", compute_type="float32", num_threads=1, max_batch=4)
        self._num_samples, self._error = num_samples, error
        self.calls: list[list[int]] = []

    def transcribe_many(self, waveforms, languages):
        self.calls.append([len(waveform) for waveform in waveforms])
        if self._error is not None and self._num_samples in self.calls[-1]:
            raise self._error
        return self._real.transcribe_many(waveforms, languages)


HEARD = ["text", "language", "asr_avg_logprob", "asr_no_speech_prob", "asr_compression_ratio"]


def spoken_records() -> list[dict[str, object]]:
    """Six recordings that say different things, of one of them a second."""
    clips = sorted((ROOT / "demo" / "heldout" / "audio").glob("sentences-*"))[:6]
    return [{"id": f"r{n}", "audio": str(clip), "duration": 1.0 if n == 3 else None} for n, clip in enumerate(clips)]


def assert_heard_alike(found, expected) -> None:
    """Every line that was not rejected says what it was to say."""
    kept = [line for line, reason in enumerate(causes(found)) if reason is None]
    for name in HEARD:
        values = [[table[name][line].as_py() for line in kept] for table in (found, expected)]
        assert values[0] == [pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for v in values[1]]


def shard_of_speech(tmp_path, checkpoints):
    work = work_of(tmp_path, spoken_records(), models_of(checkpoints, "mean", ["en", "es"]), language="auto")
    (shard,) = work.plan.shards()
    return work, shard, prepare(work, shard)


@pytest.mark.parametrize("error", [MemoryError("too long"), RuntimeError("boom")])
def test_a_failing_row_leaves_its_neighbours_as_they_are(tmp_path, checkpoints, asr, error):
    """Fails if a row's failure costs another its text, or changes it by as much as shows."""
    work, shard, table = shard_of_speech(tmp_path, checkpoints)
    well, bad = Choosy(asr), Choosy(asr, 16_000, error)
    expected, found = (transcribe(work, shard, table, lambda _, each=each: each) for each in (well, bad))
    assert well.calls == [bad.calls[0]] and len(well.calls[0]) == table.num_rows, "one call for all"
    reason = "OUT_OF_MEMORY" if isinstance(error, MemoryError) else "INTERNAL"
    assert causes(found) == [reason if count == 16_000 else None for count in well.calls[0]]
    assert_heard_alike(found, expected)
    assert len({text for text in expected["text"].to_pylist() if text}) > 1


def test_a_lethal_line_is_found_in_transcription(tmp_path, checkpoints, asr):
    """Fails if a batch hides who killed the process, the suspect is tried for ever, or a neighbour is lost or changed."""
    work, shard, table = shard_of_speech(tmp_path, checkpoints)
    well = Choosy(asr)
    expected = transcribe(work, shard, table, lambda _: well)
    deadly, watch, found = Choosy(asr, 16_000, Death()), LocalWatch(CrashTracker(), "transcribe x"), None
    for _ in range(MOST_DEATHS + 2):
        try:
            found = transcribe(work, shard, table, lambda _: deadly, watch)
        except Death:
            continue
        break
    assert found is not None
    assert len(deadly.calls[0]) == table.num_rows and {len(call) for call in deadly.calls[1:]} == {1}
    assert sum(16_000 in call for call in deadly.calls) == MOST_DEATHS + 1
    reasons = causes(found)
    assert [reason for reason in reasons if reason] == ["INTERNAL"]
    assert_heard_alike(found, expected)


def test_recordings_over_the_budget_are_heard_one_at_a_time(tmp_path, checkpoints, monkeypatch):
    """Fails if all that was too much to carry is decoded at once, or a recording that is gone is asked for by each utterance."""
    monkeypatch.setattr(prepare_module, "PCM_BUDGET_BYTES", 300_000)
    long = {"audio": str(PARITY / LONG), "text": None, "duration": 31.0}
    records = [row(0, text=None), row(1, **long), row(2, **long)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    pieces = [table["row"].to_pylist().count(n) for n in range(3)]
    assert pieces[0] == 1 and min(pieces[1:]) > 1
    calls: list[int] = []

    class Counting(FakeTranscriber):
        def transcribe_many(self, waveforms, languages):
            calls.append(len(waveforms))
            return super().transcribe_many(waveforms, languages)

    counting, asked = Counting("en"), []
    real = work_table_module.load_recording
    monkeypatch.setattr(work_table_module, "load_recording", lambda w, record: asked.append(record) or real(w, record))
    transcribe(work, shard, table, lambda _: counting)
    assert sum(calls) == table.num_rows and max(calls[1:]) <= max(pieces)
    assert len(asked) == 2

    def gone(_work, record):
        asked.append(record)
        raise RejectedRow(Reason.NOT_FOUND, "gone", Stage.FETCH)

    asked.clear()
    monkeypatch.setattr(work_table_module, "load_recording", gone)
    reasons = causes(transcribe(work, shard, table, lambda _: counting))
    missing = table["waveform"].null_count
    assert reasons.count("NOT_FOUND") == missing > 2 and len(asked) == 2

"""A shard whose texts or languages are heard, step by step, without Ray."""

from __future__ import annotations

from pipeline.annotate import prepare, recognise, transcribe
from pipeline.finish import finish
from pipeline.models import slots
from tests.golden import LONG, PARITY
from tests.shards import (
    CLIP,
    FakeTranscriber,
    Spiteful,
    by_hand,
    models_of,
    parts,
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
    table, finished = by_hand(work, FakeTranscriber("fr"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("UNSUPPORTED_LANGUAGE",) and finished.utterances == 0
    assert "'fr'" in table["detail"][0].as_py() and "--fusion-model fr=X" in table["detail"][0].as_py()


def test_silence_has_no_language(tmp_path, checkpoints):
    """Fails if the reject of a recording in which nobody speaks advises a model for the language `None`."""
    work = work_of(tmp_path, [{"id": "r0", "audio": CLIP}], models_of(checkpoints, "mean", ["en"]), language="auto")
    table, finished = by_hand(work, FakeTranscriber(None, ""), lambda _: real_recogniser(checkpoints))
    assert len(finished.rejects) == 1
    assert "None" not in table["detail"][0].as_py()


def test_a_transcriber_that_dies_of_one_row(tmp_path, checkpoints):
    """Fails if one utterance's failure in speech recognition is another's, or one of a recording leaves the others behind."""

    class Moody(FakeTranscriber):
        def transcribe(self, waveform, language):
            if len(self.asked) == 1:
                self.asked.append((0, None))
                raise MemoryError("once")
            return super().transcribe(waveform, language)

    records = [row(n, text=None) for n in range(3)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    table, finished = by_hand(work, Moody("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ("OUT_OF_MEMORY",) and parts(work)["recording_id"].to_pylist() == ["r0", "r2"]
    assert table["stage"].to_pylist() == [None, "transcribe", None]


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

    spiteful = Spiteful(real_recogniser(checkpoints), {"the second"}, RuntimeError("boom"))
    table, finished = by_hand(work, Second("en"), lambda _: spiteful)
    assert table.num_rows > 2
    assert finished.rejects == ("INTERNAL",) and parts(work)["recording_id"].to_pylist() == ["r1"]

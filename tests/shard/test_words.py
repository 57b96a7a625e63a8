"""The column `words` from the shard to the output: times in the recording, and only where it was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.audio.decode import decode
from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.whisper import WhisperTranscriber
from pipeline.shard.context import Work
from tests.support.corpus import ROOT
from tests.support.pins import job_settings
from tests.support.shards import by_hand, models_of, parts, published, real_recogniser, work_of

SPEECH = decode((ROOT / "demo" / "heldout" / "audio" / "sentences-005.mp3").read_bytes())


def annotated(folder: Path, checkpoints: Path, asr: Path, **flags: object) -> Work:
    """Annotate the same speech from the start of a file, from 2 s on, and with a text of its own, and silence."""
    folder.mkdir(parents=True)
    silence = np.zeros(32_000, np.float32)
    for name, sound in (("speech", SPEECH), ("later", np.concatenate([silence, SPEECH])), ("silence", silence)):
        soundfile.write(folder / f"{name}.wav", sound, 16_000, subtype="FLOAT")
    speech = {"audio": str(folder / "speech.wav"), "language": "en"}
    records = [
        {"id": "a-whole", **speech},
        {"id": "b-later", **speech, "audio": str(folder / "later.wav"), "offset": 2.0},
        {"id": "c-told", **speech, "text": "words of the manifest"},
        {"id": "d-silence", **speech, "audio": str(folder / "silence.wav")},
    ]
    work = work_of(folder / "work", records, models_of(checkpoints, "mean", ["en"]), **flags)
    options = {"device": "cpu", "compute_type": "float32", "num_threads": 1}
    transcriber = WhisperTranscriber(asr, words=work.plan.settings.words, **options)
    by_hand(work, transcriber, lambda _: real_recogniser(checkpoints))
    return work


def test_words_come_with_times_in_the_recording(tmp_path, checkpoints, asr):
    """Fails if times are of the utterance, a text of the manifest gets words, or the audit accuses them."""
    work = annotated(tmp_path / "a", checkpoints, asr, words=True)
    whole, later, told, silence = (row["words"] for row in parts(work).to_pylist())
    assert told is None and silence == []
    texts = parts(work)["text"].to_pylist()
    assert [" ".join(word["word"] for word in words) for words in (whole, later)] == texts[:2]
    assert len(whole) > 5 and [word["word"] for word in later] == [word["word"] for word in whole]
    for name in ("start_s", "end_s"):
        assert [word[name] for word in later] == pytest.approx([word[name] + 2.0 for word in whole])
    assert audit(published(work), deep=True).status == "sound"
    (part,) = Path(work.output).glob("utterances/*.parquet")
    schema = pq.read_schema(part)
    assert schema.names[schema.get_field_index("asr_flag") + 1] == "words"
    assert b"start_s" in schema.field("words").metadata[b"description"]


def test_nothing_else_changes_with_words(tmp_path, checkpoints, asr):
    """Fails if the column is written without the option, or the option changes a text or a score."""
    plain, timed = (annotated(tmp_path / str(flag), checkpoints, asr, words=flag) for flag in (False, True))
    assert "words" not in parts(plain).column_names and "words" not in plain.plan.settings.document()
    assert parts(timed).drop_columns(["words", "audio"]).equals(parts(plain).drop_columns(["audio"]))
    assert Settings.of(timed.plan.settings.document()).words


def test_the_models_of_a_job_time_words(asr):
    """Fails if the setting does not reach the transcriber of the actors."""
    models, _ = roles.pin({roles.Role.parse("asr/en"): str(asr)}, "mean")
    for words in (False, True):
        loaded = roles.Loaded(models, settings=job_settings(words=words), device="cpu", num_threads=1)
        transcript = loaded.transcriber_for("en").transcribe(SPEECH[:16_000], "en")
        assert (transcript.words is not None) == words


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"mode": "audio"}, "mode audio transcribes nothing"), ({"texts": "hash"}, "what --texts hash removes")],
)
def test_words_need_transcripts(flags, message):
    """Fails if words are promised where there are none, or written where texts must not be."""
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"manifest": ["m"], "output": "o", "words": True, **flags})

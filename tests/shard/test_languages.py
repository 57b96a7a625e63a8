"""The language of a recording whose language is detected: decided over all its segments, and what becomes of odd ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import speech_seconds
from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.transcription import Transcript
from pipeline.models.whisper import WhisperTranscriber
from pipeline.shard.crashes import MOST_DEATHS, CrashTracker, LocalWatch
from pipeline.shard.languages import CLEAR_SPEECH_S, Detection, recording_language, segment_language
from pipeline.shard.prepare import prepare
from pipeline.shard.transcribe import transcribe
from tests.shard.test_crashes import Death
from tests.support.cases import case
from tests.support.detecting import ENGLISH, HELDOUT, SPANISH, UNSURE, WELSH, Detecting, auto, foreign, pieces, shown
from tests.support.shards import FakeTranscriber, by_hand, causes, models_of, parts, published, work_of

# -- the rule alone


def test_a_recording_has_the_language_with_the_most_speech_times_probability():
    """Fails if segments count alike however long they are, or the likeliest language of the first, or of most, wins."""
    two = [Detection(2.0, {"cy": 0.9, "en": 0.1}), Detection(1.5, {"cy": 0.8, "en": 0.2})]
    assert recording_language([*two, Detection(9.0, {"en": 0.55, "cy": 0.45})]) == "cy"
    assert recording_language([*two, Detection(9.0, {"en": 0.70, "cy": 0.30})]) == "en"
    assert recording_language([Detection(0.0, {"cy": 1.0}), Detection(0.1, {"en": 0.3})]) == "en"
    assert recording_language([]) is recording_language([Detection(3.0, {}), Detection(0.0, {"en": 1.0})]) is None


def test_the_order_of_segments_does_not_matter():
    """Fails if what is decided depends on order, or is not the argument of the largest sum (found here by numpy)."""
    for seed in range(20):
        with case(seed):
            chance = np.random.default_rng(seed)
            names, seconds = ["cy", "en", "es", "fr"], chance.uniform(0.3, 30, 12).round(2)
            probs = chance.dirichlet(np.full(4, 0.3), 12)
            segments = [Detection(s, dict(zip(names, p, strict=True))) for s, p in zip(seconds, probs, strict=True)]
            for allowed in ((), ("es", "fr")):
                columns = [names.index(name) for name in allowed or names]
                expected = names[columns[int((seconds @ probs)[columns].argmax())]]
                assert recording_language(segments, allowed) == expected
                random.Random(seed).shuffle(segments)
                assert recording_language(segments, allowed) == expected
            assert recording_language([Detection(1.0, {"fr": 0.5, "en": 0.5})]) == "en"  # equals: by name


@pytest.mark.parametrize(
    ("speech_s", "prob", "own"),
    [(5.0, 0.9, "es"), (4.97, 0.99, "en"), (30.0, 0.89, "en"), (2.0, 1.0, "en"), (8.0, 0.95, "es")],
)
def test_only_a_clear_segment_keeps_its_own_language(speech_s, prob, own):
    """Fails if a bound of the rule moves: 0.9 of probability over 5 s of speech."""
    segment = Detection(speech_s, {"es": prob, "en": 1 - prob})
    assert segment_language(segment, "en") == own
    assert segment_language(segment, "en", ["en", "fr"]) == "en"


# -- through the steps


@pytest.mark.parametrize(("odd", "where"), [(WELSH, 1), (WELSH, 0), (UNSURE, 2), (SPANISH, 3)])
def test_one_odd_segment_does_not_cost_the_recording(tmp_path, checkpoints, odd, where):
    """Fails if a short segment in a language without a model rejects a whole recording (5 of 181 lost 11 minutes)."""
    detected = [ENGLISH] * 4
    detected[where] = odd
    audio = pieces(tmp_path / "a.wav", 3, 3, 3, 3)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}, {"id": "s", "audio": audio}])
    fake = Detecting(*detected, *[ENGLISH] * 4)
    _, finished = by_hand(work, fake)
    assert (finished.rejects, finished.utterances) == ((), 8)
    assert shown(work) == [("en", "en words", True, None)] * 8
    assert fake.given == ["en"], "what was transcribed in another language, and nothing else, is transcribed again"
    probs = [row["language_prob"] for row in parts(work).to_pylist()]
    assert probs == [pytest.approx(each["en"]) for each in (*detected, *[ENGLISH] * 4)]
    assert {row["model"][:8] for row in parts(work).to_pylist()} == {"mean-en:"}


def test_a_clear_segment_without_a_model_is_null_alone(tmp_path, checkpoints):
    """Fails if a sentence in a language without a model is labelled by another's, or takes its recording along."""
    work = foreign(tmp_path, checkpoints)
    said = [("en", "en words", True, None), ("es", "es words", False, "language"), ("en", "en words", True, None)]
    assert shown(work) == said
    row = parts(work).to_pylist()[1]
    results = ("label", "emotion", "confidence", "margin", "scores", "model", "audio_embedding", "text_embedding",
               "fused_embedding")  # fmt: skip
    assert {name: row[name] for name in results} == dict.fromkeys(results)
    assert (row["abstained"], row["truncated"]) == (False, False) and row["language_prob"] == pytest.approx(0.97)
    assert row["end_s"] > row["start_s"] and row["text_source"] == "asr"


def test_a_clear_segment_with_a_model_is_labelled_by_it(tmp_path, checkpoints):
    """Fails if a Spanish sentence of an English recording is labelled by the English model though there is a Spanish one."""
    work = foreign(tmp_path, checkpoints, ("en", "es"))
    assert [row[0] for row in shown(work)] == ["en", "es", "en"]
    assert [row["model"][:8] for row in parts(work).to_pylist()] == ["mean-en:", "mean-es:", "mean-en:"]
    assert shown(work, "label", "emotion_null_reason") == [(True, None)] * 3


def test_only_allowed_languages_are_chosen(tmp_path, checkpoints):
    """Fails if a language that was not allowed decides for a recording or a segment."""
    audio = pieces(tmp_path / "a.wav", 7, 8)
    records = [{"id": "r", "audio": audio}, {"id": "s", "audio": audio}]
    work = auto(tmp_path, checkpoints, records, ("en", "es"), allowed_languages="en,fr")
    by_hand(work, Detecting(SPANISH, SPANISH, SPANISH, ENGLISH))
    assert shown(work) == [("en", "en words", True, None)] * 4


def test_a_recording_without_a_model_is_still_rejected(tmp_path, checkpoints):
    """Fails if a recording that is decided to be in another language is labelled for the sake of one segment."""
    audio = pieces(tmp_path / "a.wav", 8, 7, 8)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}, {"id": "s", "audio": audio}])
    table, finished = by_hand(work, Detecting(WELSH, {"en": 0.99}, WELSH, ENGLISH, ENGLISH, ENGLISH))
    assert finished.rejects == ("UNSUPPORTED_LANGUAGE",) and finished.utterances == 3
    assert causes(table, "detail")[0] == (
        "detected language 'cy' has no emotion model; name one with --emotion-model cy=X"
    )


def test_segments_in_which_nobody_speaks_decide_nothing(tmp_path, checkpoints, monkeypatch):
    """Fails if a silent segment rejects its recording, is put to Whisper, or has a language of its own."""
    audio = pieces(tmp_path / "a.wav", 3, 3, 3)
    silent = iter([0.0, 2.5, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr("pipeline.shard.prepare.speech_seconds", lambda waveform: next(silent))
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}, {"id": "s", "audio": audio}])
    fake = Detecting(ENGLISH)
    _, finished = by_hand(work, fake)
    assert (finished.rejects, finished.utterances) == (("NO_SPEECH",), 3)
    assert [row[:2] for row in shown(work)] == [("en", ""), ("en", "en words"), ("en", "")]
    assert [row["language_prob"] for row in parts(work).to_pylist()] == [None, pytest.approx(0.75), None]


@pytest.mark.parametrize("mode", ["mean", "audio"])
def test_a_text_that_was_given_stays(tmp_path, checkpoints, mode):
    """Fails if a row with a text and no language is transcribed again, or loses its text, or has no language_prob."""
    record = {"id": "r", "audio": pieces(tmp_path / "a.wav", 3), "text": "mine"}
    chosen = models_of(checkpoints, mode, ["en", "es"])
    work = work_of(tmp_path, [record], chosen, mode, language="auto", allowed_languages="en")
    fake = Detecting(UNSURE)
    by_hand(work, fake)
    (row,) = parts(work).to_pylist()
    assert (row["language"], row["text"], row["text_source"], row["asr_avg_logprob"]) == (
        "en",
        "mine",
        "manifest",
        None,
    )
    assert row["language_prob"] == pytest.approx(0.15) and fake.given == []


def test_a_given_language_has_no_probability(tmp_path, checkpoints):
    """Fails if a language that nobody detected looks as if Whisper were sure of it."""
    audio = pieces(tmp_path / "a.wav", 3)
    records = [
        {"id": "r", "audio": audio, "language": "en-GB"},
        {"id": "s", "audio": audio, "text": "x", "language": "en-GB"},
    ]
    work = auto(tmp_path, checkpoints, records)
    by_hand(work, Detecting())
    assert shown(work, "language", "language_prob") == [("en-GB", None), ("en-GB", None)]


# -- retries


def test_a_segment_that_fails_the_second_time_is_its_recordings_reject(tmp_path, checkpoints):
    """Fails if a failure in the second transcription leaves the words of another language, or fails the shard."""

    class Failing(Detecting):
        def transcribe(self, waveform, language):
            if language == "en":
                raise MemoryError("the second time")
            return super().transcribe(waveform, language)

    audio = pieces(tmp_path / "a.wav", 3, 3)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}, {"id": "s", "audio": audio}])
    _, finished = by_hand(work, Failing({"en": 1.0}, UNSURE, ENGLISH, ENGLISH))
    assert (finished.rejects, finished.utterances) == (("OUT_OF_MEMORY",), 2)
    assert {row["recording_id"] for row in parts(work).to_pylist()} == {"s"}


def test_a_segment_that_kills_the_second_time_is_found(tmp_path, checkpoints):
    """Fails if a process that dies in the second transcription dies for ever, or another line is blamed."""
    records = [{"id": name, "audio": pieces(tmp_path / f"{name}.wav", 3, last)} for name, last in (("r", 4), ("s", 3))]
    work = auto(tmp_path, checkpoints, records)
    (shard,), found = work.plan.shards(), None

    class Deadly(FakeTranscriber):
        def transcribe(self, waveform, language):
            if language is not None:
                raise Death
            probs = {"es": 0.6, "en": 0.4} if len(waveform) > 3.5 * SAMPLING_RATE else ENGLISH
            return Transcript("words", max(probs, key=probs.__getitem__), language_probs=probs)

    table, watch = prepare(work, shard), LocalWatch(CrashTracker(), "transcribe x")
    for _ in range(MOST_DEATHS + 2):
        try:
            found = transcribe(work, shard, table, lambda _: Deadly(None), watch)
        except Death:
            continue
        break
    assert found is not None and causes(found) == [None, "INTERNAL", None, None]
    assert found["text"].to_pylist()[2:] == ["words"] * 2


# -- the small Whisper


def test_a_real_whisper_and_joined_clips(tmp_path, checkpoints, asr):
    """Fails if English with one short Spanish sentence is lost for it, or half a minute of Spanish in it goes unnoticed."""
    names = ["sentences-031.wav", "sentences-022.wav", "sentences-040.wav", "sentences-013.wav"]
    clips = {name: decode((HELDOUT / name).read_bytes()) for name in names}
    transcriber = WhisperTranscriber(asr, device="cpu", compute_type="float32", num_threads=1)
    spoken = {name: transcriber.transcribe(clip, None) for name, clip in clips.items()}
    english = [clips[name] for name in names if spoken[name].language == "en"]
    spanish = [clips[name] for name in names if spoken[name].language == "es"]
    assert english and spanish
    pause = np.zeros(SAMPLING_RATE, np.float32)
    long = np.concatenate([decode((HELDOUT / "long-es-0.opus").read_bytes())])[: 12 * SAMPLING_RATE]
    for name, odd in (("short", spanish[0]), ("long", long)):
        mixed = [english[0], pause, english[-1], pause, odd, pause, english[0], pause, english[-1], pause, english[0]]
        soundfile.write(tmp_path / f"{name}.wav", np.concatenate(mixed), SAMPLING_RATE)
    records = [{"id": name, "audio": str(tmp_path / f"{name}.wav")} for name in ("short", "long")]
    work = auto(tmp_path, checkpoints, records)
    _, finished = by_hand(work, transcriber)
    assert finished.rejects == ()
    rows = parts(work).to_pylist()
    short = [row for row in rows if row["recording_id"] == "short"]
    assert len(short) > 4 and {(row["language"], row["emotion_null_reason"]) for row in short} == {("en", None)}
    assert min(row["language_prob"] for row in short) < 0.5 < np.median([row["language_prob"] for row in short])
    for row in rows:
        clear = row["language"] == "es"
        assert (row["label"] is None) == clear == (row["emotion_null_reason"] == "language")
        assert not clear or (row["language_prob"] >= 0.9 and row["duration_s"] >= CLEAR_SPEECH_S)


def test_a_recording_that_is_not_cut_is_not_judged_by_its_first_half_minute(tmp_path, asr):
    """Fails if a Spanish announcement before an English recording decides for all of it (Whisper's own first window)."""
    spanish, english = (decode((HELDOUT / f"long-{language}-0.opus").read_bytes()) for language in ("es", "en"))
    window = 30 * SAMPLING_RATE
    waveform = np.concatenate([np.resize(spanish, window), np.resize(english, 3 * window)])
    assert speech_seconds(waveform) > 30
    transcriber = WhisperTranscriber(asr, device="cpu", compute_type="float32", num_threads=1)
    found = transcriber.transcribe(waveform, None)
    assert found.language == "en" and 0.6 < found.language_probs["en"] < 0.9
    assert sum(found.language_probs.values()) == pytest.approx(1, abs=1e-4)
    quiet = np.concatenate([np.zeros(window, np.float32), np.resize(spanish, window + 1000)])
    assert transcriber.transcribe(quiet, None).language == "es"


def test_the_reason_of_an_abstention(tmp_path, checkpoints):
    """Fails if an emotion is null for want of confidence and nothing says so."""
    audio = pieces(tmp_path / "a.wav", 3)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}], min_confidence=1.0)
    by_hand(work, Detecting(ENGLISH))
    assert shown(work, "emotion", "abstained", "emotion_null_reason") == [(None, True, "abstained")]
    assert audit(published(work), deep=True).status == "sound"


# -- the allowed languages


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"allowed_languages": "en"}, "add --language auto"),
        ({"allowed_languages": "en", "language": "es"}, "add --language auto"),
        ({"allowed_languages": "en-GB", "language": "auto"}, "'en-gb' is not a primary language tag"),
        ({"allowed_languages": ["english"], "language": "auto"}, "'english' is not"),
        ({"allowed_languages": "en,EN", "language": "auto"}, "twice"),
        ({"allowed_languages": " , ", "language": "auto"}, "names no language"),
        ({"allowed_languages": [1], "language": "auto"}, "expected text"),
    ],
)
def test_allowed_languages_are_tags(flags, said):
    """Fails if a tag that nobody detects, or a list without effect, is taken without a word."""
    with pytest.raises(ConfigError, match=said):
        load_config(None, {"manifest": ["m"], "output": "o", **flags})


def test_allowed_languages_are_settings():
    """Fails if a second night may choose from other languages, or the order or spelling of the list makes it another."""

    def settings(tags: object) -> Settings:
        config = load_config(None, {"manifest": ["m"], "output": "o", "language": "auto", "allowed_languages": tags})
        return config.settings(precision="fp32", asr_compute_type="float32")

    assert settings("es, EN") == settings(["en", "es"]) and settings("en,es").allowed_languages == ("en", "es")


def test_models_of_languages_that_are_not_allowed_are_not_needed():
    """Fails if `--allowed-languages en` still fetches the Spanish models, or a list without any model starts a job."""

    def detectable(tags: str) -> list[str]:
        flags = {"manifest": ["m"], "output": "o", "language": "auto", "allowed_languages": tags}
        return roles.detectable_languages(load_config(None, flags))

    assert (detectable("en"), detectable("es,fr,en")) == (["en"], ["en", "es"])
    with pytest.raises(ConfigError, match=r"--allowed-languages fr,de: .* only for en, es; .*--emotion-model fr=X"):
        detectable("fr,de")

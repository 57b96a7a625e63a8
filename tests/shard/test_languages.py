"""The language of a recording whose language is detected: decided over all its segments, and what becomes of odd ones."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import deltalake
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from demo.run import _utterance_cells
from jobs import evaluate, report, summarize
from pipeline import SAMPLING_RATE
from pipeline.analytics.compact import compact
from pipeline.analytics.drift import Window, compare
from pipeline.analytics.nearest import nearest
from pipeline.analytics.publish import publish as publish_rows
from pipeline.analytics.search import query_by_utterance
from pipeline.analytics.summarize import merged, parse_groups
from pipeline.analytics.summarize import summarize as summarize_rows
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import speech_seconds
from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.dataset.compatibility import claim_dataset, dataset_settings
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.promises import Promise
from pipeline.engine.run import Driver
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.transcriber import Transcriber, Transcript
from pipeline.schema import passthrough_name, utterance_schema
from pipeline.shard.context import Work
from pipeline.shard.crashes import MOST_DEATHS, Ledger, LedgerWatch
from pipeline.shard.languages import CLEAR_SPEECH_S, Detection, recording_language, segment_language
from pipeline.shard.steps import prepare, transcribe
from pipeline.storage.store import LocalStore
from tests.shard.test_crashes import Death
from tests.support.corpus import ROOT, utterances
from tests.support.damages import rewrite
from tests.support.manifests import jsonl
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, published, work_of

HELDOUT = ROOT / "demo" / "heldout" / "audio"
SPEECH = decode((HELDOUT / "sentences-004.wav").read_bytes())
"""Ordinary speech; what language it is in, the transcriber of a test says."""
ENGLISH, WELSH, SPANISH = {"en": 0.75, "cy": 0.25}, {"cy": 0.99, "en": 0.01}, {"es": 0.97, "en": 0.03}
UNSURE = {"es": 0.85, "en": 0.15}


def pieces(path: Path, *seconds: float) -> str:
    """A recording of pieces of speech as long as asked, with pauses that part them."""
    whole = np.tile(SPEECH, 20)
    pause = np.zeros(SAMPLING_RATE)
    parts = [part for length in seconds for part in (whole[: int(length * SAMPLING_RATE)], pause)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(parts), SAMPLING_RATE)
    return str(path)


class Detecting(FakeTranscriber):
    """Detects what it is told, utterance after utterance, and answers in the language it is asked for."""

    def __init__(self, *detected: dict[str, float]) -> None:
        super().__init__(None)
        self.detected = list(detected)
        self.given: list[str] = []

    def transcribe(self, waveform, language):
        if language is not None:
            self.given.append(language)
            return Transcript(f"{language} words", language, -0.5, 0.1, 1.25)
        probs = self.detected.pop(0)
        likeliest = max(probs, key=probs.__getitem__)
        return Transcript(f"{likeliest} words", likeliest, -0.5, 0.1, 1.25, probs)


def auto(folder: Path, checkpoints: Path, records, languages=("en",), **flags: object) -> Work:
    flags = {"language": "auto", "segmentation": "vad", "embedding_dtype": "float32", **flags}
    return work_of(folder, records, models_of(checkpoints, "mean", list(languages)), **flags)


def shown(work: Work, *columns: str) -> list[tuple[object, ...]]:
    names = columns or ("language", "text", "label", "emotion_null_reason")
    return [
        tuple(row[name] if name != "label" else row[name] is not None for name in names)
        for row in parts(work).to_pylist()
    ]


# -- the rule alone


def test_a_recording_has_the_language_with_the_most_speech_times_probability():
    """Fails if segments count alike however long they are, or the likeliest language of the first, or of most, wins."""
    two = [Detection(2.0, {"cy": 0.9, "en": 0.1}), Detection(1.5, {"cy": 0.8, "en": 0.2})]
    assert recording_language([*two, Detection(9.0, {"en": 0.55, "cy": 0.45})]) == "cy"
    assert recording_language([*two, Detection(9.0, {"en": 0.70, "cy": 0.30})]) == "en"
    assert recording_language([Detection(0.0, {"cy": 1.0}), Detection(0.1, {"en": 0.3})]) == "en"
    assert recording_language([]) is recording_language([Detection(3.0, {}), Detection(0.0, {"en": 1.0})]) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_segments_does_not_matter(seed):
    """Fails if what is decided depends on order, or is not the argument of the largest sum (found here by numpy)."""
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


def foreign(tmp_path: Path, checkpoints: Path, languages=("en",), **flags: object) -> Work:
    """A recording of English, with a long segment that is clearly Spanish."""
    audio = pieces(tmp_path / "a.wav", 7, 8, 7)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio, "speaker": "a"}], languages, **flags)
    by_hand(work, Detecting(ENGLISH, SPANISH, ENGLISH))
    return work


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
    assert table["detail"][0].as_py() == (
        "detected language 'cy' has no emotion model; name one with --emotion-model cy=X"
    )


def test_segments_in_which_nobody_speaks_decide_nothing(tmp_path, checkpoints, monkeypatch):
    """Fails if a silent segment rejects its recording, is put to Whisper, or has a language of its own."""
    audio = pieces(tmp_path / "a.wav", 3, 3, 3)
    silent = iter([0.0, 2.5, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr("pipeline.shard.steps.speech_seconds", lambda waveform: next(silent))
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

    table, watch = prepare(work, shard), LedgerWatch(Ledger(), "transcribe x")
    for _ in range(MOST_DEATHS + 2):
        try:
            found = transcribe(work, shard, table, lambda _: Deadly(None), watch)
        except Death:
            continue
        break
    assert found is not None and found["reason"].to_pylist() == [None, "INTERNAL", None, None]
    assert found["text"].to_pylist()[2:] == ["words"] * 2


# -- the small Whisper


def test_a_real_whisper_and_joined_clips(tmp_path, checkpoints, asr):
    """Fails if English with one short Spanish sentence is lost for it, or half a minute of Spanish in it goes unnoticed."""
    names = ["sentences-031.wav", "sentences-022.wav", "sentences-040.wav", "sentences-013.wav"]
    clips = {name: decode((HELDOUT / name).read_bytes()) for name in names}
    transcriber = Transcriber(asr, device="cpu", compute_type="float32", num_threads=1)
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
    transcriber = Transcriber(asr, device="cpu", compute_type="float32", num_threads=1)
    found = transcriber.transcribe(waveform, None)
    assert found.language == "en" and 0.6 < found.language_probs["en"] < 0.9
    assert sum(found.language_probs.values()) == pytest.approx(1, abs=1e-4)
    quiet = np.concatenate([np.zeros(window, np.float32), np.resize(spanish, window + 1000)])
    assert transcriber.transcribe(quiet, None).language == "es"


# -- datasets, old and new


OLD = utterance_schema({}, "float32", version=1)
NEW = utterance_schema({}, "float32", version=2)


def test_new_columns_come_in_new_datasets_alone():
    """Fails if the columns of 7d25560 change, or a new one is not where the documentation has it."""
    assert [name for name in NEW.names if name not in OLD.names] == ["language_prob", "emotion_null_reason"]
    assert [name for name in NEW.names if name in OLD.names] == OLD.names
    required = ["utterance_id", "recording_id", "segment_index", "truncated", "language", "text_source", "label", "abstained",
                "confidence", "margin", "scores", "model", "run_id"]  # fmt: skip
    assert [field.name for field in OLD if not field.nullable] == required
    assert NEW.field("language_prob").type == "float"


@pytest.fixture
def old_dataset(monkeypatch) -> None:
    """Settings as 7d25560 wrote them."""
    real = load_config(None, {"manifest": ["m"], "output": "o"}).__class__.settings
    monkeypatch.setattr(
        "pipeline.config.JobConfig.settings", lambda self, **known: real(self, **{**known, "version": 1})
    )


def test_an_old_dataset_is_decided_likewise_without_new_columns(tmp_path, checkpoints, old_dataset):
    """Fails if a dataset of 7d25560 gets a column it does not have, a null it does not allow, or loses the recording."""
    work = foreign(tmp_path, checkpoints)
    assert "schema_version" not in work.plan.settings.document()
    assert shown(work, "language", "text", "label") == [("en", "en words", True)] * 3
    (part,) = Path(work.output).glob("utterances/*.parquet")
    widths = dict.fromkeys(work.plan.embedding_widths, 1)
    expected = utterance_schema(widths, "float32", work.plan.extra, version=1)
    found = pq.read_schema(part)
    assert found.names == expected.names
    assert [field.nullable for field in found] == [field.nullable for field in expected]
    both = foreign(tmp_path / "both", checkpoints, ("en", "es"))
    assert [row["model"][:8] for row in parts(both).to_pylist()] == ["mean-en:", "mean-es:", "mean-en:"]


@pytest.mark.parametrize("old", [True, False])
def test_a_dataset_keeps_its_version(tmp_path, old):
    """Fails if an old dataset is refused for a setting it could not name, takes new columns, or renames a manifest's."""
    manifest = jsonl(tmp_path / "m.jsonl", {"id": "r", "audio": "a.wav", "Language_Prob": 0.5, "label": "joy"})
    (tmp_path / "a.wav").write_bytes(b"")
    config = load_config(None, {"manifest": [str(manifest)], "output": str(tmp_path / "out")})
    if old:
        settings = config.settings(precision="fp32", asr_compute_type="float32", version=1)
        claim_dataset(LocalStore(tmp_path / "out"), settings)
    driver = Driver(config, io.StringIO())
    there = config.settings(precision="fp32", asr_compute_type="float32", version=1) if old else None
    assert driver._settings(there, "cpu").schema_version == (1 if old else 2)
    names = driver.read(tmp_path / "spool").spool.extra.names
    assert names == ["Language_Prob" if old else "manifest_Language_Prob", "manifest_label"]


def test_a_dataset_of_a_later_version_is_refused(tmp_path):
    """Fails if a program that does not know a dataset's columns adds rows to it."""
    config = load_config(None, {"manifest": ["m"], "output": str(tmp_path)})
    settings = config.settings(precision="fp32", asr_compute_type="float32", version=1)
    document = {"format": 1, "settings": settings.document(), "token": "t"}
    for version in (3, "2", None, 0):
        document["settings"]["schema_version"] = version
        (tmp_path / "_dataset.json").write_text(json.dumps(document))
        with pytest.raises(ConfigError, match="schema_version"):
            dataset_settings(LocalStore(tmp_path))


class SimpleDriver:
    """Of a driver, what `_settings` needs."""

    def __init__(self, config) -> None:
        self.config = config


def test_two_columns_that_would_be_one_are_refused(tmp_path):
    """Fails if one of two manifest columns is lost where a new column takes the name of the first."""
    record = {"id": "r", "audio": "a.wav", "language_prob": 0.5, "manifest_language_prob": 1}
    manifest = jsonl(tmp_path / "m.jsonl", record)
    driver = Driver(load_config(None, {"manifest": [str(manifest)], "output": str(tmp_path / "out")}), io.StringIO())
    with pytest.raises(ConfigError, match="'language_prob' and 'manifest_language_prob'"):
        driver.read(tmp_path / "spool")
    assert passthrough_name("language_prob") == "language_prob"


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


# -- everything that reads an output


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, checkpoints) -> LocalStore:
    """A finished run of four utterances, one of which has no results, and one of which abstains."""
    folder = tmp_path_factory.mktemp("mixed")
    audio = pieces(folder / "a.wav", 7, 8, 7)
    records = [{"id": "r", "audio": audio, "speaker": "a", "label": "joy"},
               {"id": "s", "audio": pieces(folder / "b.wav", 3), "speaker": "b", "label": "anger"}]  # fmt: skip
    work = auto(folder, checkpoints, records, min_confidence=0.0)
    by_hand(work, Detecting(ENGLISH, SPANISH, ENGLISH, ENGLISH))
    return published(work)


def test_an_audit_of_null_results(mixed, tmp_path):
    """Fails if a row without results is called broken, or one that should have some is called sound."""
    assert (audit(mixed, deep=True).status, audit(mixed, deep=True).violations) == ("sound", ())
    damages = {
        "label": "joy", "confidence": 0.5, "audio_embedding": [0.0] * 768, "model": "m", "emotion_null_reason": None,
        "language": "en", "language_prob": 0.5, "abstained": True,
    }  # fmt: skip
    for name, value in damages.items():
        out = tmp_path / name
        shutil.copytree(mixed.root, out)

        def change(rows, name=name, value=value):
            values = [value if row["language"] == "es" else row[name] for row in rows.to_pylist()]
            field = rows.schema.field(name)
            return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))

        rewrite(next(out.glob("utterances/*.parquet")), change)
        found = {violation.promise for violation in audit(LocalStore(out), deep=True).violations}
        assert Promise.LANGUAGE in found, name


def test_sums_leave_out_null_results(mixed, capsys):
    """Fails if a mean counts an utterance that has no confidence as one with 0."""
    assert summarize.main([mixed.root, "--by", "speaker"]) == 0
    table = {row["speaker"]: row for row in merged(mixed, parse_groups(["speaker"], ["speaker"])).to_pylist()}
    rows = [row for row in utterances(mixed.root).to_pylist() if row["speaker"] == "a"]
    known = [row["confidence"] for row in rows if row["confidence"] is not None]
    assert (len(rows), len(known)) == (3, 2)
    assert table["a"]["confidence"] == pytest.approx(np.mean(known)) and table["a"]["utterances"] == 3
    assert sum(table["a"]["share"].values()) == pytest.approx(2 / 3)
    assert table["b"]["confidence"] == pytest.approx(table["b"]["confidence_max"])


def test_sums_of_an_older_version_are_read(mixed, tmp_path):
    """Fails if summaries written before there was a count of confidences can no longer be added up."""
    store, groups = LocalStore(tmp_path / "out"), parse_groups(["speaker"], ["speaker"])
    shutil.copytree(mixed.root, store.root)
    for _ in range(2):
        for _plan in summarize_rows(finished_rows(store), groups):
            (file,) = Path(store.root).glob("summaries/speaker/*.parquet")
            pq.write_table(pq.read_table(file).drop_columns(["confidence_count"]), file)
    found = {row["speaker"]: row["confidence"] for row in merged(store, groups).to_pylist()}
    assert found["b"] == pytest.approx(utterances(store.root).to_pylist()[-1]["confidence"])


def test_an_evaluation_leaves_out_null_results(mixed, tmp_path, capsys):
    """Fails if an utterance without a prediction crashes the evaluation, counts as wrong, or goes without a word."""
    assert evaluate.main([mixed.root, "--labels", "label", "--resamples", "0", "--write", str(tmp_path / "ev")]) == 0
    counts = json.loads((tmp_path / "ev" / "metrics.json").read_text())["outputs"][0]["counts"]
    assert (counts["utterances"], counts["compared"], counts["without_prediction"]) == (4, 3, 1)
    assert "1 labelled utterances are in a language without a model" in capsys.readouterr().out


def test_a_report_shows_null_results(mixed, tmp_path):
    """Fails if a page cannot be drawn of rows without results, or shows them as abstained."""
    assert report.main([mixed.root, "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "(no model) 25 %" in page and "(abstained) " not in page


def test_drift_counts_null_results_apart(mixed):
    """Fails if an emotion or a confidence that is null is left out of a distribution, or crashes it."""
    rows = finished_rows(mixed)
    measures = {
        m.column: m for m in compare(Window(rows), Window(rows, "language = 'es'")).measures if m.measure == "psi"
    }
    assert measures["emotion"].change == measures["confidence"].change == "none: 25.0% -> 100.0%"
    assert measures["language"].change == "es: 25.0% -> 100.0%"


def test_null_results_are_no_neighbours(mixed):
    """Fails if an utterance without an embedding is found, or asking for its neighbours gives an accident."""
    rows = finished_rows(mixed)
    for where in (None, "true"):
        found = nearest(rows, query_by_utterance(rows, "r#0000", None), top=9, where=where)["utterance_id"].to_pylist()
        assert sorted(found) == ["r#0002", "s#0000"]
    with pytest.raises(ConfigError, match="'r#0001' has no audio_embedding"):
        query_by_utterance(rows, "r#0001", None)


def test_large_files_and_tables_hold_null_results(mixed, tmp_path):
    """Fails if a compacted file or a lakehouse table lacks the new columns, or cannot hold a null in the old ones."""
    expected = utterances(mixed.root).to_pylist()
    list(compact(finished_rows(mixed), target_bytes=2**20))
    large = pq.read_table(next(Path(mixed.root).glob("compacted/*.parquet"))).sort_by("utterance_id")
    assert large.to_pylist() == expected
    for form in ("delta", "lance"):
        assert len(list(publish_rows(finished_rows(mixed), form, str(tmp_path / form)))) == 1
    for table in (
        deltalake.DeltaTable(str(tmp_path / "delta")).to_pyarrow_table(),
        lance.dataset(tmp_path / "lance").to_table(),
    ):
        rows = table.sort_by("utterance_id").to_pylist()
        assert [row["emotion_null_reason"] for row in rows] == [None, "language", None, None]
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
        assert rows[1]["audio_embedding"] is rows[1]["confidence"] is None


def test_the_demo_shows_null_results():
    """Fails if the demo's table cannot show an utterance without a confidence."""
    row = {"audio": "/a/b.wav", "channel": None, "start_s": 0.0, "speaker": "x", "text": "hola", "text_source": "asr",
           "emotion": None, "confidence": None, "manifest_label": None}  # fmt: skip
    assert _utterance_cells(row, several=False)[-2:] == ["–", "–"]


def test_the_reason_of_an_abstention(tmp_path, checkpoints):
    """Fails if an emotion is null for want of confidence and nothing says so."""
    audio = pieces(tmp_path / "a.wav", 3)
    work = auto(tmp_path, checkpoints, [{"id": "r", "audio": audio}], min_confidence=1.0)
    by_hand(work, Detecting(ENGLISH))
    assert shown(work, "emotion", "abstained", "emotion_null_reason") == [(None, True, "abstained")]
    assert audit(published(work), deep=True).status == "sound"

"""Which models a job uses, how they are pinned, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import faster_whisper.utils
import pytest

from pipeline.config import JobConfig, load_config
from pipeline.dataset.plan import Plan
from pipeline.errors import ConfigError, JobError
from pipeline.models import roles
from pipeline.models.checkpoints import published
from pipeline.pins import Role, pins_document, pins_of
from tests.support.pins import by_role, job_settings, named, pins


def config(**flags: object) -> JobConfig:
    return load_config(None, {"manifest": ["m"], "output": "o", **flags})


def local(checkpoints: Path, mode: str = "mean", language: str = "en") -> dict[Role, str]:
    chosen = {f"fusion/{language}": str(checkpoints / f"{mode}-{language}")}
    if mode not in ("audio", "text"):
        chosen[f"sentence_encoder/{language}"] = str(checkpoints / f"bert-{language}")
    return by_role(chosen)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# -- choosing


def test_the_published_models_by_language_and_mode():
    """Fails if a default is of another language or mode, or a model is chosen that the mode does not use."""
    assert named(roles.choose(config(), ["es", "en"], needs_asr=True)) == {
        "fusion/en": "UMUTeam/w2v-bert-beto-mean-emotion-en", "sentence_encoder/en": "google-bert/bert-base-uncased",
        "asr/en": "large-v3-turbo", "fusion/es": "UMUTeam/w2v-bert-beto-mean-emotion-es",
        "sentence_encoder/es": "dccuchile/bert-base-spanish-wwm-uncased", "asr/es": "large-v3-turbo",
    }  # fmt: skip
    audio, text = (
        named(roles.choose(config(mode=mode), [language], needs_asr=False))
        for mode, language in (("audio", "en"), ("text", "es"))
    )
    assert audio == {"fusion/en": "UMUTeam/w2v-bert-emotion-en"} and text == {"fusion/es": "UMUTeam/MarIA-emotion-es"}
    assert roles.choose(config(), [], needs_asr=True) == {}


def test_models_the_mode_does_not_need_are_accepted_and_unused():
    """Fails if `--sentence-encoder` in mode audio is an error, or is loaded."""
    found = roles.choose(config(mode="audio", sentence_encoder="B", asr_model="W"), ["en"], needs_asr=False)
    assert list(map(str, found)) == ["fusion/en"]


def test_a_named_model_wins_over_the_published_one():
    """Fails if the published model is used where one was named, or a named one for the wrong language."""
    asked = config(emotion_model=["X", "es=S"], sentence_encoder=["es=B"], asr_model="W")
    assert named(roles.choose(asked, ["en", "es"], needs_asr=True)) == {
        "fusion/en": "X", "sentence_encoder/en": "google-bert/bert-base-uncased", "asr/en": "W",
        "fusion/es": "S", "sentence_encoder/es": "B", "asr/es": "W",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        ({}, ["en", "es"]),
        ({"emotion_model": ["fr=F"]}, ["en", "es", "fr"]),
        ({"language": "fr"}, ["en", "es"]),
        ({"language": "fr-CA", "emotion_model": ["F"]}, ["en", "es", "fr"]),
        ({"language": "auto"}, ["en", "es"]),
        ({"language": "auto", "emotion_model": ["fr=F"]}, ["en", "es", "fr"]),
    ],
)
def test_known_languages(flags, known):
    """Fails if a row of a language that has a model is rejected, or one that has none is planned; `auto` is no language."""
    assert roles.known_languages(config(**flags)) == known


def test_a_language_without_a_model_names_the_option():
    """Fails if the person is not told how to name a model."""
    with pytest.raises(ConfigError, match="--emotion-model fr=X"):
        roles.choose(config(), ["fr"], needs_asr=False)
    with pytest.raises(ConfigError, match="--sentence-encoder fr=X"):
        roles.choose(config(emotion_model=["fr=F"]), ["fr"], needs_asr=False)


def test_asr_names_are_faster_whispers():
    """Fails if faster-whisper renames or adds a size: the copy that saves its import would be stale."""
    assert faster_whisper.utils._MODELS == published.ASR_MODELS
    assert published.DEFAULT_ASR in published.ASR_MODELS


# -- pinning


def test_pin_says_what_will_be_loaded(checkpoints):
    """Fails if widths, hashes or sizes are not those of the files."""
    pinned, widths = roles.pin(local(checkpoints) | local(checkpoints, language="es"), "mean")
    assert widths == {"audio_embedding": 768, "text_embedding": 768, "fused_embedding": 768}
    assert set(map(str, pinned)) == {"fusion/en", "sentence_encoder/en", "fusion/es", "sentence_encoder/es"}
    assert len({model.sha256 for model in pinned.values()}) == 4
    for model in pinned.values():
        folder = Path(model.spec)
        assert model.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert len(model.sha256) == 64 and model.revision is None
    assert pins_of(json.loads(json.dumps(pins_document(pinned)))) == pinned


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"fusion/en": "/gone"}, "--emotion-model en=/gone: "),
        ({"fusion/en": "bert-en"}, "--emotion-model en="),
        ({"fusion/en": "concat-en", "sentence_encoder/en": "bert-en"}, "--emotion-model en="),
        ({"fusion/en": "mean-en", "sentence_encoder/en": "mean-es"}, "mean-es"),
        ({"asr/en": "bert-en"}, "--asr-model en="),
    ],
)
def test_what_does_not_fit_names_its_option(checkpoints, chosen, named):
    """Fails if a missing or wrong model is found only on a worker, or the message does not name the option."""
    specs = by_role({role: str(checkpoints / name) for role, name in chosen.items()})
    with pytest.raises(ConfigError) as caught:
        roles.pin(specs, "mean")
    assert named in str(caught.value)


def test_a_bad_sentence_encoder_names_its_own_option(checkpoints):
    """Fails if a missing sentence encoder is blamed on `--emotion-model`."""
    chosen = by_role({"fusion/en": str(checkpoints / "mean-en"), "sentence_encoder/en": "/gone"})
    with pytest.raises(ConfigError, match=r"--sentence-encoder en=/gone") as caught:
        roles.pin(chosen, "mean")
    assert "--emotion-model" not in str(caught.value)


def test_a_changed_weight_file_is_not_loaded(tmp_path, checkpoints):
    """Fails if a worker uses other weights than the plan pinned."""
    folder = copied(checkpoints / "audio-en", tmp_path / "audio-en")
    pinned, _ = roles.pin(by_role({"fusion/en": str(folder)}), "audio")
    assert roles.Loaded(pinned, settings=job_settings(mode="audio"), device="cpu").recogniser_for("en").mode == "audio"
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(JobError, match="fusion/en") as caught:
        roles.Loaded(pinned, settings=job_settings(mode="audio"), device="cpu").load_recognisers()
    assert str(folder) in str(caught.value)


def test_a_model_that_is_gone_on_a_worker_is_a_job_error(tmp_path, checkpoints):
    """Fails if a node without the files ends in a usage error (2) instead of a failed job (1)."""
    pinned, _ = roles.pin(by_role({"fusion/en": str(copied(checkpoints / "audio-en", tmp_path / "x"))}), "audio")
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(JobError, match="fusion/en"):
        roles.Loaded(pinned, settings=job_settings(mode="audio"), device="cpu").load_recognisers()


def test_models_are_loaded_once(checkpoints, asr):
    """Fails if a second utterance loads the model again, or two languages load one Whisper twice."""
    chosen = by_role({"fusion/en": str(checkpoints / "audio-en"), "asr/en": str(asr), "asr/es": str(asr)})
    pinned, _ = roles.pin(chosen, "audio")
    loaded = roles.Loaded(pinned, settings=job_settings(mode="audio"), device="cpu", num_threads=1)
    assert loaded.recogniser_for("en") is loaded.recogniser_for("en")
    loaded.load_transcribers()
    assert loaded.transcriber_for("en") is loaded.transcriber_for("es") is loaded.transcriber_for(None)
    assert loaded.transcriber_for("fr") is loaded.transcriber_for("en")


# -- what stands in the output


def test_the_fingerprint():
    """Fails if two sets of weights, encoders or precisions have one fingerprint, or its form changes."""
    models = pins(fusion_en="a" * 64, sentence_encoder_en="b" * 64, asr_en="c" * 64)
    assert roles.fingerprint(models, job_settings(), "en") == "mean-en:aaaaaaaaaaaa+bbbbbbbbbbbb@fp32"
    alone = pins(fusion_es="d" * 64)
    assert roles.fingerprint(alone, job_settings("bf16", mode="audio"), "es") == "audio-es:dddddddddddd@bf16"


def test_what_a_plan_needs():
    """Fails if a plan without speech recognition gets transcription actors, or one with it gets none."""
    plan = Plan(
        plan="000001", token="t", created_at="", settings=job_settings(), models=pins(fusion_en=1), embedding_widths={},
        manifests=(), files=(), rows=0, rejects=0, rejects_file=None, rows_without_text=0, audio_s=0.0, extra_schema="",
    )  # fmt: skip
    assert not plan.needs_asr
    assert replace(plan, models=pins(fusion_en=1, asr_en=1)).needs_asr
    assert plan.knows_language("en") and not plan.knows_language("es")


def test_versions_name_what_computes():
    """Fails if a receipt could not tell which library made a score."""
    assert {"python", "torch", "transformers", "faster-whisper", "ctranslate2", "soxr"} <= set(roles.versions())

"""A Whisper in Hugging Face form as a job's speech recogniser: converted once per node, and pinned as converted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from jobs.prepare_models import main
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.checkpoints import convert
from pipeline.pins import ModelPin, Role, Task, pins_document, pins_of
from tests.support.hub_standin import Repository, serve
from tests.support.pins import by_role, job_settings
from tests.support.processes import until
from tests.support.published import HF_WHISPER, OLD, prepared, whisper

ROOT = Path(__file__).parents[2]
LANGUAGES = {"<|en|>": 694, "<|es|>": 695}
ASR = Role(Task.ASR, "en")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of conversions, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speech-emotion-pipeline" / "converted"


@pytest.fixture
def source(tmp_path) -> Path:
    whisper(tmp_path / "whisper of ours", lang_to_id=LANGUAGES)
    return tmp_path / "whisper of ours"


def pinned(spec: object) -> ModelPin:
    models, _ = roles.pin(by_role({"asr/en": str(spec)}), "mean")
    return models[ASR]


def conversions(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.suffix != ".lock")


def test_the_driver_and_another_node_convert_to_the_same_files(source, cache, tmp_path, monkeypatch):
    """Fails if a job refuses the directory, converts it twice on a node, or a worker gets other files than were pinned."""
    pin = pinned(source)
    (made,) = conversions(cache)
    assert pin.spec == str(source) and pin.source_sha256 not in (None, pin.sha256)
    assert pins_of(pins_document({ASR: pin})) == {ASR: pin}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "to_ctranslate2", None)
        assert roles.pinned_checkpoint(pin).directory == made and pinned(source) == pin
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other node"))
    found = roles.pinned_checkpoint(pin)
    assert found.sha256 == pin.sha256 and found.directory != made and found.spec == str(source)


def test_a_job_transcribes_with_it(source):
    """Fails if the actors load the directory instead of its conversion."""
    models, _ = roles.pin(by_role({"asr/en": str(source)}), "mean")
    loaded = roles.Loaded(models, settings=job_settings(), device="cpu", num_threads=1)
    loaded.load_transcribers()
    assert loaded.transcriber_for("en").transcribe(torch.zeros(16_000).numpy(), "en").language == "en"


def test_other_files_or_another_conversion_are_refused(source):
    """Fails if a worker whose directory or libraries differ from the driver's transcribes all the same."""
    pin = pinned(source)
    with pytest.raises(ConfigError, match=r"converts to other files here .* versions of ctranslate2 and transformers"):
        roles.pinned_checkpoint(replace(pin, sha256="0" * 64))
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="differ from those the job was started with"):
        roles.pinned_checkpoint(pin)


def test_a_pickle_is_converted_and_leaves_nothing_else(source, cache):
    """Fails if a pickled Whisper is refused, or what the conversion needs meanwhile stays in the cache."""
    expected = pinned(source).sha256
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert pinned(source).sha256 == expected
    assert len(conversions(cache)) == 2
    names = {path.name for folder in conversions(cache) for path in folder.iterdir()}
    assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= names and "model.safetensors" not in names


def test_a_conversion_that_fails_leaves_nothing(source, cache, monkeypatch):
    """Fails if a Whisper without its tokenizer is a stack trace, or a full disk leaves half a model for the next job."""
    tokenizer = (source / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"--asr-model en=.*tokenizer"):
        pinned(source)
    (source / "tokenizer.json").write_bytes(tokenizer)

    def full(checkpoint: object, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(convert, "to_ctranslate2", full)
        with pytest.raises(ConfigError, match=r"cannot convert it in .*No space left.*XDG_CACHE_HOME"):
            pinned(source)
    assert conversions(cache) == []
    assert pinned(source).sha256


def test_prepared_ahead_of_time_it_is_the_same_model(source, checkpoints, tmp_path):
    """Fails if a dataset started with the directory cannot continue with a prepared folder of the same."""
    arguments = ["--output", str(tmp_path / "models"), "--mode", "audio", "--language", "en"]
    assert main([*arguments, "--emotion-model", str(checkpoints / "audio-en"), "--asr-model", str(source)]) == 0
    assert prepared(tmp_path / "models").lock.models[str(source)].sha256 == pinned(source).sha256


def test_a_whisper_of_the_hub_is_converted(source, tmp_path, monkeypatch):
    """Fails if the hub's openai/whisper-* are refused, or their commit is not in the pin."""
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    constants = huggingface_hub.constants
    with serve({HF_WHISPER: Repository({OLD: files}, {"main": OLD})}) as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.endpoint)
        template = standin.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        pin = pinned(HF_WHISPER)
    assert pin.revision == OLD and pin.sha256 == pinned(source).sha256
    assert roles.pinned_checkpoint(pin).revision == OLD


PROGRAM = """
import sys
from pathlib import Path
from pipeline.models.checkpoints import convert
from pipeline.models.checkpoints.weights import resolve
make = convert.to_ctranslate2
def slowly(*given):
    Path(sys.argv[2]).touch()
    made = make(*given)
    if sys.argv[3] == "stop":
        import time
        time.sleep(600)
    return made
convert.to_ctranslate2 = slowly
print(convert.converted_whisper(resolve(sys.argv[1])).sha256)
"""


def test_processes_at_once_convert_once_and_survive_a_killed_one(source, cache, tmp_path):
    """Fails if the actors of a node convert at once, use half a conversion, or wait for ever for one that was killed."""

    def start(name: str, how: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / name), how]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    with start("first", "stop") as first:
        until((tmp_path / "first").exists)
        others = [start("second"), start("third")]
        until(lambda: len(list(cache.glob(".*"))) == 1)
        first.kill()
    answers = {other.communicate(timeout=60)[0].strip() for other in others}
    assert answers == {pinned(source).sha256}
    assert [(tmp_path / name).exists() for name in ("second", "third")].count(True) == 1
    assert len(conversions(cache)) == 1

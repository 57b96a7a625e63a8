"""Speech recognisers of onnx-asr, made up in the tests: their files, their texts, and what they refuse."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import onnx_asr
import pytest

from jobs.prepare_models import main
from pipeline.config import load_config
from pipeline.errors import ConfigError, Reason, Reject
from pipeline.models import roles
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.onnx import OnnxTranscriber
from pipeline.models.transcription import Transcript
from pipeline.pins import Role, Task
from tests.support.corpus import ROOT
from tests.support.onnx_models import canary, clip, parakeet, vosk
from tests.support.published import prepared

TEXT_MODEL = str(ROOT / "demo/models/text-en")
LENGTHS_S = (1.5, 4.0, 2.2, 9.0, 5.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parakeet(tmp_path_factory.mktemp("onnx") / "parakeet")


def chosen(spec: str, **options: object) -> dict[Role, str]:
    given = {"manifest": "m", "output": "o", "mode": "text", "emotion_model": TEXT_MODEL, "asr_model": spec, **options}
    return roles.choose(load_config(None, given), ["en"], needs_asr=True)


def test_texts_are_those_of_the_library(model):
    """Fails if clips are exchanged between rows, padding reaches a text, or anything but the library's text is returned."""
    clips = [clip(seconds, seed) for seed, seconds in enumerate(LENGTHS_S)]
    alone = OnnxTranscriber(model, device="cpu", num_threads=1)
    together = OnnxTranscriber(model, device="cpu", num_threads=1, max_batch=4)
    library = onnx_asr.load_model("nemo-conformer-ctc", model, providers=["CPUExecutionProvider"])
    found = alone.transcribe_many(clips, ["en"] * len(clips))
    assert found == together.transcribe_many(clips, ["en"] * len(clips))
    texts = [each.text for each in found if isinstance(each, Transcript)]
    assert texts == [library.recognize(each).strip() for each in clips] and len(set(texts)) == len(clips)
    assert all(each.avg_logprob is None and each.language == "en" for each in found if isinstance(each, Transcript))
    figures = [each.take_figures() for each in (alone, together)]
    assert [(each.batches, each.batched) for each in figures] == [(5, 5), (2, 5)]


def test_a_model_that_is_told_the_language_is_told_each_rows(tmp_path):
    """Fails if rows of a batch are all transcribed in the first one's language, or an unknown one ends in a KeyError."""
    transcriber = OnnxTranscriber(canary(tmp_path / "canary"), device="cpu", num_threads=1, max_batch=4)
    found = transcriber.transcribe_many([clip(2.0)] * 4, ["en", "es", "fr", "es"])
    assert [each.text for each in found if isinstance(each, Transcript)] == ["hello", "hola", "hola"]
    assert isinstance(found[2], Reject) and found[2].reason is Reason.UNSUPPORTED_LANGUAGE
    with pytest.raises(ConfigError, match="'de'"):
        roles.choose(
            load_config(None, {"manifest": "m", "output": "o", "mode": "text", "language": "de",
                               "emotion_model": TEXT_MODEL, "asr_model": f"onnx:{tmp_path / 'canary'}"}),
            ["de"], needs_asr=True,
        )  # fmt: skip


def test_a_pin_covers_the_files_that_are_used(tmp_path):
    """Fails if other weights keep the hash, such as a graph's external file, or a card or an unused graph changes it."""
    folder = parakeet(tmp_path / "model")
    spec, graph = f"onnx:{folder}", folder / "model.onnx"
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights", size_threshold=0)
    before = resolve(spec)
    (folder / "README.md").write_text("a card")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "part").write_text("of a download")
    parakeet(folder, graph="model.int8.onnx", seed=9)
    (folder / "model.int8.onnx.data").write_text("of the graph that is not used")
    assert resolve(spec) == before
    quantised = resolve(f"{spec}@int8")
    assert quantised.sha256 != before.sha256
    (pin,) = roles.pin({Role(Task.ASR, "en"): f"{spec}@int8"}, "text")[0].values()
    assert (pin.sha256, pin.size_bytes) == (quantised.sha256, sum(
        (folder / name).stat().st_size for name in ("config.json", "vocab.txt", "model.int8.onnx", "weights",
                                                    "model.int8.onnx.data")
    ))  # fmt: skip
    texts = [
        OnnxTranscriber(folder, quantisation=each, device="cpu").transcribe_many([clip(9.0)], ["en"])
        for each in (None, "int8")
    ]
    assert texts[0] != texts[1]
    with (folder / "weights").open("r+b") as file:
        file.write(b"other")
    assert resolve(spec).sha256 != before.sha256
    with pytest.raises(ConfigError, match="expected"):
        resolve(spec, expected_sha256=before.sha256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("other")), "no such directory.*hf download"),
        (lambda folder: (folder / "config.json").unlink(), "config.json.* cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no model_type"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "wav2vec2"}'), "'wav2vec2' not supported"),
        (lambda folder: (folder / "model.onnx").rename(folder / "model.int8.onnx"), "model.onnx.* not found.*@int8"),
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt.* not found"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_at_once(tmp_path, change, message):
    """Fails if a folder that the library does not know is refused after Ray has started, or in the library's traceback."""
    folder = parakeet(tmp_path / "model")
    change(folder)
    with pytest.raises(ConfigError, match=rf"--asr-model en=onnx:{folder}: .*{message}"):
        chosen(f"onnx:{folder}")


def test_a_missing_library_is_named(model, monkeypatch):
    """Fails if a job without the extra starts, or ends in an ImportError of a worker."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnx_asr" else find_spec(name, *more)
    )
    with pytest.raises(ConfigError, match=r"pip install 'speech-emotion-pipeline\[onnx\]'"):
        chosen(f"onnx:{model}")


@pytest.mark.parametrize(
    "option",
    [
        {"words": True}, {"language": "auto"}, {"segmentation": "none"}, {"beam_size": 5}, {"asr_window": "full"},
        {"asr_compute_type": "int8"},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_options_of_whisper_alone_are_refused(model, option):
    """Fails if an option is accepted that changes nothing, or that leaves a column empty which it promises to fill."""
    (name,) = option
    emotion = {"en": TEXT_MODEL}
    with pytest.raises(ConfigError, match=f"cannot be used with --{name.replace('_', '-')}"):
        chosen(f"onnx:{model}", **{**option, "emotion_model": emotion})
    assert chosen(f"onnx:{model}")[Role(Task.ASR, "en")] == f"onnx:{model}"


def test_no_emotion_model_is_one(model):
    """Fails if `onnx:` before an emotion model is taken for a folder with a config of its own."""
    with pytest.raises(ConfigError, match="for --asr-model alone"):
        chosen(f"onnx:{model}", emotion_model=f"onnx:{model}")


def test_a_graph_that_does_not_load_is_named(tmp_path):
    """Fails if a damaged graph ends in onnxruntime's own error, which names neither folder nor option."""
    folder = parakeet(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ConfigError, match=f"{folder} cannot be loaded by onnx-asr"):
        OnnxTranscriber(folder, device="cpu")
    with pytest.raises(ConfigError, match="CUDAExecutionProvider"):
        OnnxTranscriber(folder, device="cuda")


def test_a_lack_of_memory_halves_batches(model, monkeypatch):
    """Fails if onnxruntime's allocation error, which is no RuntimeError, rejects the rows of a batch that was too large."""
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    transcriber = OnnxTranscriber(model, device="cpu", num_threads=1, max_batch=4)
    recognise = transcriber._model.recognize

    def small_batches_only(waveforms, **options):
        if len(waveforms) > 2:
            raise RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")
        return recognise(waveforms, **options)

    monkeypatch.setattr(transcriber._model, "recognize", small_batches_only)
    clips = [clip(seconds, seed) for seed, seconds in enumerate(LENGTHS_S)]
    found = transcriber.transcribe_many(clips, ["en"] * len(clips))
    assert found == OnnxTranscriber(model, device="cpu").transcribe_many(clips, ["en"] * len(clips))
    assert transcriber.take_figures().halved > 0


def test_a_model_in_folders_is_prepared(tmp_path, monkeypatch):
    """Fails if files in folders are lost or renamed, or the copy has another hash than the folder it was made from."""
    folder = vosk(tmp_path / "vosk")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    out = tmp_path / "models"
    asked = ["--output", str(out), "--language", "en", "--mode", "text", "--emotion-model", TEXT_MODEL]
    assert main([*asked, "--asr-model", f"onnx:{folder}"]) == 0
    found = prepared(str(out))
    locked = found.lock.models[f"onnx:{folder}"]
    assert sorted(locked.files) == [
        "am-onnx/decoder.onnx", "am-onnx/encoder.onnx", "am-onnx/joiner.onnx", "config.json", "lang/tokens.txt",
    ]  # fmt: skip
    assert locked.licence == "apache-2.0" and locked.sha256 == resolve(f"onnx:{folder}").sha256
    folder.rename(tmp_path / "gone")
    copy = found.checkpoint(f"onnx:{folder}")
    assert copy is not None and copy.sha256 == locked.sha256 and copy.spec == f"onnx:{folder}"
    assert main([*asked, "--asr-model", f"onnx:{folder}"]) == 0
    assert main(["--output", str(out), "--verify"]) == 0

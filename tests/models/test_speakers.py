"""The speaker model and the clustering of its embeddings, through the steps of a shard as well.

The weights here are random, and their embeddings depend on the voice all the same; benchmarks/speakers.py measures the error
with real ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from pipeline import SAMPLING_RATE
from pipeline.audio import speakers as clustering
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import Cuts, speech_spans
from pipeline.audio.speakers import speaker_spans, speakers_of
from pipeline.config import load_config
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError, JobError
from pipeline.models import roles, speakers
from pipeline.models.networks.ge2e import Ge2e, SpeakerEncoder
from pipeline.models.speakers import SPEAKER, pin_speaker_model, speaker_encoder
from tests.support.golden import PARITY
from tests.support.shards import FakeTranscriber, by_hand, models_of, parts, published, real_recogniser, row, work_of

EN, ES = (decode((PARITY / "audio" / name).read_bytes()) for name in ("en_16k_pcm16.wav", "es_16k_pcm16.wav"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file in the form of Resemblyzer's, with random weights."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("speaker") / "pretrained.pt"
    torch.save({"step": 1, "model_state": {**Ge2e().state_dict(), "similarity_weight": torch.ones(1)}}, path)
    return path


# -- clustering


def test_groups_are_numbered_as_they_appear():
    """Fails if one voice has two numbers, two voices one, or numbers do not follow the first words."""
    voices = np.eye(4, dtype=np.float32)
    vectors = np.stack([voices[n] + 0.1 * voices[3] for n in (2, 0, 2, 1, 0, 0, 2)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert speakers_of(vectors, np.ones(7, bool)) == [0, 1, 0, 2, 1, 1, 0]
    assert speakers_of(vectors[:1], np.ones(1, bool)) == [0]


def test_short_speech_founds_no_speaker():
    """Fails if a cough of half a second becomes a speaker of its own beside speech, or a recording of such alone fails."""
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    vectors[3] = np.array([0.2, 0.4, np.sqrt(0.8)])
    assert speakers_of(vectors, np.array([True, True, True, False])) == [0, 1, 0, 1]
    assert speakers_of(vectors, np.zeros(4, bool)) == [0, 1, 0, 2]


def test_many_spans_are_assigned(monkeypatch):
    """Fails if a long recording takes the square of its spans, or spans that are not clustered change their speaker."""
    monkeypatch.setattr(clustering, "_MOST_CLUSTERED", 10)
    order = [n % 3 for n in range(99)]
    assert speakers_of(np.eye(3, dtype=np.float32)[order], np.ones(99, bool)) == order


CLIP = EN[: int(1.6 * SAMPLING_RATE)]


def embed_sign(waveform: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Tell a clip from the same upside down, by its largest correlation with the clip, which scaling leaves."""
    vectors = []
    for start in starts:
        match = correlate(waveform[start : start + 25_600], CLIP, method="fft")
        vectors.append([1.0, 0.0] if match[np.abs(match).argmax()] > 0 else [0.0, 1.0])
    return np.array(vectors, np.float32)


def test_recordings_are_cut_where_the_speaker_changes():
    """Fails if a change of speaker at a pause of 0.3 s is inside an utterance, or one speaker's pause of 0.3 s cuts."""
    pause = np.zeros(int(0.3 * SAMPLING_RATE), np.float32)
    recording = np.concatenate([CLIP, pause, CLIP, pause, -CLIP, pause, CLIP])
    found = speaker_spans(recording, Cuts(), embed_sign)
    step = len(CLIP) + len(pause)
    assert [each.speaker for each in found] == [0, 1, 0]
    assert [each.span.start for each in found] == pytest.approx([0, 2 * step, 3 * step], abs=0.45 * SAMPLING_RATE)
    assert found[1].span.end <= found[2].span.start
    assert len(list(speech_spans(recording, 30.0))) < 3, "pauses of 0.5 s alone would cut less"
    assert speaker_spans(np.zeros(SAMPLING_RATE, np.float32), Cuts(), embed_sign) == []


# -- the model


def test_embeddings_are_unit_vectors_of_their_windows(weights):
    """Fails if a window's embedding depends on its batch or on what follows it, or is not of length 1."""
    encoder = speaker_encoder(pin_speaker_model(str(weights)))
    starts = np.array([0, 8_000, 16_000, len(EN) - 100])
    together = encoder.embed(EN, starts)
    assert together.shape == (4, 256) and np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for number, start in enumerate(starts):
        np.testing.assert_allclose(
            encoder.embed(EN[: start + 25_600], starts[[number]])[0], together[number], atol=1e-5
        )
    assert encoder.embed(EN, starts[:0]).shape == (0, 256)


def test_mel_powers_are_librosas():
    """Fails if the features are not those that the weights were trained on."""
    import librosa

    expected = librosa.feature.melspectrogram(y=EN[:25_600], sr=16_000, n_fft=400, hop_length=160, n_mels=40)
    encoder = SpeakerEncoder(Ge2e().state_dict())
    found = encoder._mels(torch.from_numpy(EN[None, :25_600]))[0].numpy()
    np.testing.assert_allclose(found, expected.T[:160], rtol=1e-3, atol=1e-6)


def test_a_pin_is_the_file(weights, tmp_path):
    """Fails if a node uses other weights than the plan names, or a file without weights starts a run."""
    pin = pin_speaker_model(str(weights))
    assert pin.size_bytes == weights.stat().st_size and len(pin.sha256) == 64
    copy = tmp_path / "copy.pt"
    copy.write_bytes(weights.read_bytes())
    moved = pin_speaker_model(str(copy))
    assert moved.sha256 == pin.sha256
    copy.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="the plan's has"):
        speaker_encoder(moved)
    for content in (b"", b"PK nothing", weights.read_bytes()[:1000]):
        copy.write_bytes(content)
        with pytest.raises(ConfigError, match="has no weights"):
            pin_speaker_model(str(copy))
    torch.save({"model_state": {}}, copy)
    with pytest.raises(ConfigError, match="has no weights"):
        pin_speaker_model(str(copy))
    with pytest.raises(ConfigError, match="neither resemblyzer nor a file"):
        pin_speaker_model(str(tmp_path / "none.pt"))


def onnx_file(path: Path) -> str:
    """A model whose embedding is the mean and the mean square of a window."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Constant", [], ["axis"], value=helper.make_tensor("a", TensorProto.INT64, [1], [1])),
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["x", "x"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axis"], ["power"], keepdims=1),
        helper.make_node("Concat", ["mean", "power"], ["y"], axis=1),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "speakers", shapes[:1], shapes[1:])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    return f"onnx:{path}"


def test_a_model_in_onnx_form(tmp_path):
    """Fails if a window that is given to an ONNX model is another one, or a model of another form starts a run."""
    spec = onnx_file(tmp_path / "good.onnx")
    encoder = speaker_encoder(pin_speaker_model(spec))
    starts = np.array([0, 5_000, len(EN) - 12_000])
    expected = np.array(
        [[np.mean(each), np.mean(each**2)] for each in (np.pad(EN, (0, 25_600))[s : s + 25_600] for s in starts)]
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(EN, starts), expected, atol=1e-4)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="no speaker model that takes audio"):
        pin_speaker_model(f"onnx:{tmp_path / 'bad.onnx'}")


def test_a_package_that_is_missing(monkeypatch):
    """Fails if a missing package is a traceback, or is found missing only on the workers."""
    for missing, says in ((speakers.PACKAGE, "--no-deps resemblyzer"), ("sklearn", r"\[speakers\]")):

        def found(name: str, missing: str = missing) -> object:
            return None if name == missing else SimpleNamespace(submodule_search_locations=["/x"])

        monkeypatch.setattr(speakers.importlib.util, "find_spec", found)
        with pytest.raises(ConfigError, match=says):
            pin_speaker_model(speakers.PACKAGE)


def test_a_run_without_speakers_loads_neither_torch_nor_scikit_learn():
    """Fails if tasks that decode pay for a model that nobody asked for."""
    script = "import sys, pipeline.shard.prepare; print([name for name in ('torch', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- through the steps


def test_utterances_have_speakers(tmp_path, checkpoints, weights, monkeypatch):
    """Fails if the speaker is lost on the way, a row with a text is cut, or the audit accuses the output."""
    import soundfile

    pause = np.zeros(SAMPLING_RATE, np.float32)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([EN, pause, ES, pause, EN]), SAMPLING_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * SAMPLING_RATE, np.float32), SAMPLING_RATE)
    monkeypatch.setattr(clustering, "MOST_DISTANCE", 1e-9)
    records = [
        {"id": "talk", "audio": str(tmp_path / "talk.wav"), "language": "en"}, row(1),
        {"id": "silence", "audio": str(tmp_path / "silence.wav"), "language": "en"},
    ]  # fmt: skip
    chosen = {**models_of(checkpoints, "mean", ["en"]), str(SPEAKER): str(weights)}
    work = work_of(tmp_path / "w", records, chosen, speakers=True)
    _, finished = by_hand(work, FakeTranscriber("en"), lambda _: real_recogniser(checkpoints))
    assert finished.rejects == ()
    found: dict[str, list[str | None]] = {}
    for each in parts(work).to_pylist():
        found.setdefault(each["recording_id"], []).append(each["speaker_id"])
    assert found["r1"] == found["silence"] == [None]
    assert found["talk"][0] == "S1" and len(found["talk"]) >= 3
    assert "overlap_share" not in parts(work).column_names
    assert audit(published(work), deep=True).status == "sound"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"turns": "t"}, "--speakers and --turns"),
        ({"channels": "split"}, "--speakers and --channels split"),
        ({"segmentation": "none"}, "where the speaker changes"),
        ({"window_s": 4.0}, "where the speaker changes"),
        ({"mode": "text"}, "where the speaker changes"),
        ({"speakers": False, "speaker_model": "x.pt"}, "--speaker-model needs --speakers"),
    ],
)
def test_options_that_exclude_speakers(flags, says):
    """Fails if one of two options is ignored in silence."""
    with pytest.raises(ConfigError, match=says):
        load_config(None, {"manifest": ["m"], "output": "o", "speakers": True, **flags})


def test_the_model_is_chosen_with_the_others():
    """Fails if a plan with speakers does not pin their model, or one without needs it."""
    for flags, chosen in (({"speakers": True}, {SPEAKER: "resemblyzer"}), ({}, {})):
        config = load_config(None, {"manifest": ["m"], "output": "o", **flags})
        found = roles.choose(config, ["en"], needs_asr=False)
        assert {role: spec for role, spec in found.items() if role == SPEAKER} == chosen
        assert roles.choose(config, [], needs_asr=False) == {}
    assert roles.option(SPEAKER, "x.pt") == "--speaker-model x.pt"

"""The recogniser around the models: what it refuses, flags and keeps in order. Scores are in test_parity.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models import emotion
from pipeline.models.batching import batches
from pipeline.models.checkpoints.weights import Checkpoint, resolve
from pipeline.models.emotion import MIN_SAMPLES, EmotionRecogniser, check, embedding_widths, labels_of
from pipeline.models.networks.fusion import FusionModel


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


@pytest.fixture
def mean(checkpoints) -> EmotionRecogniser:
    return EmotionRecogniser("mean", resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en")))


def changed(source: Path, target: Path, **config: object) -> Checkpoint:
    """A copy of a checkpoint with other values in its config; None removes a key."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return resolve(str(target))


def test_batches_hold_their_bounds_and_every_index():
    """Fails if an utterance is lost or doubled, a bound is passed, or one over-long clip can never run."""
    lengths = [*np.random.default_rng(1).uniform(0.1, 40, 500), 900.0]
    made = batches(lengths, max_batch=16, max_padded=100)
    assert sorted(i for batch in made for i in batch) == list(range(501))
    assert made[0] == [500]
    for batch in made[1:]:
        assert len(batch) <= 16
        assert max(lengths[i] for i in batch) * len(batch) <= 100


@pytest.mark.parametrize(
    ("waveforms", "texts", "said"),
    [
        ([noise(16_000), noise(MIN_SAMPLES - 1)], ["a", "b"], "utterance 1"),
        ([noise(16_000).reshape(1, -1)], ["a"], "utterance 0"),
        ([noise(16_000)], [None], r"without text: \[0\]"),
        ([noise(16_000)], ["a", "b"], "1 waveforms came with 2 texts"),
        (None, ["a"], "needs waveforms"),
        ([noise(16_000)], None, "needs texts"),
    ],
)
def test_what_cannot_be_run_is_named_before_any_work(mean, waveforms, texts, said):
    """Fails if a short clip becomes NaN (no variance over one frame), or a text is taken for another row's."""
    with pytest.raises(ValueError, match=said):
        mean.recognise(waveforms, texts)


@pytest.mark.parametrize("num_samples", [MIN_SAMPLES, 720, 880, 16_000, 16_160])
def test_shortest_and_odd_clips(mean, num_samples):
    """Fails if the shortest clip gives NaN, or half a frame of padding of an odd clip is heard in a batch only."""
    mean.runner.batcher.max_batch = 8
    alone = mean.recognise([noise(num_samples)], ["yes"])
    beside = mean.recognise([noise(40_000, 1), noise(num_samples), noise(900, 2)], ["a", "yes", "b"])
    assert np.isfinite(alone.scores).all()
    assert np.abs(alone.scores[0] - beside.scores[1]).max() < 1e-4


def test_truncation_is_flagged_at_the_sample(mean):
    """Fails if audio past 160 s is cut without the flag, or a clip of exactly 16,000 mel frames is flagged."""
    last_heard = 400 + 160 * 15_999
    clips = [noise(last_heard + 159), noise(last_heard + 160)]
    model = mean.runner.model
    features = [model.features([clip])[0] for clip in clips]
    assert [frames.shape[1] for frames in features] == [8000, 8000]
    model.features = lambda given: (features[0][:, :50].repeat(len(given), 1, 1), torch.ones(len(given), 50))
    assert mean.recognise(clips, ["", ""]).truncated.tolist() == [False, True]


def test_columns(mean):
    """Fails if confidence, margin, label and emotion are not those of the scores, or a column has another length."""
    result = mean.recognise([noise(8000, seed) for seed in range(3)], ["a", "b", ""])
    assert result.scores.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    for row in range(3):
        best = np.sort(result.scores[row])
        assert result.labels[row] == result.label_names[int(result.scores[row].argmax())]
        assert result.confidence[row] == best[-1]
        assert result.margin[row] == best[-1] - best[-2]
    assert result.emotions == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    for name, width in mean.embedding_widths.items():
        assert getattr(result, name).shape == (3, width)
        assert getattr(result, name).dtype == np.float32


@pytest.mark.parametrize("mode", ["audio", "mean", "text"])
def test_nothing_in_nothing_out(checkpoints, mode):
    """Fails if a shard whose rows were all rejected before crashes the models."""
    model = EmotionRecogniser(mode, resolve(str(checkpoints / f"{mode}-en")), resolve(str(checkpoints / "bert-en")))
    result = model.recognise([], [])
    assert result.scores.shape == (0, 7)
    assert result.labels == []


def test_scores_that_are_not_numbers_are_an_error(mean, monkeypatch):
    """Fails if an overflow in half precision is written as a label."""
    network = mean.runner.model.network
    monkeypatch.setattr(network.classifier, "forward", lambda fused: torch.full((1, 7), torch.nan))
    with pytest.raises(FloatingPointError, match=r"utterances \[0\]"):
        mean.recognise([noise(8000)], [""])


def test_precision(checkpoints):
    """Fails if bf16 is not used, is used where fp32 was asked for, or gives something else altogether."""
    fusion, encoder = resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en"))
    full = EmotionRecogniser("mean", fusion, encoder).recognise([noise(16_000)], ["hello"])
    half = EmotionRecogniser("mean", fusion, encoder, precision="bf16").recognise([noise(16_000)], ["hello"])
    assert 0 < np.abs(full.scores - half.scores).max() < 0.2
    with pytest.raises(ConfigError, match="precision 'int4' is none of"):
        EmotionRecogniser("mean", fusion, encoder, precision="int4")
    for mode, device in (("text", "cpu"), ("mean", "cuda")):
        with pytest.raises(ConfigError, match=f"int8 .* not for mode {mode} on {device}"):
            EmotionRecogniser(mode, fusion, encoder, precision="int8", device=device)


def test_eight_bits(checkpoints):
    """Fails if int8 changes nothing or too much, touches more than the audio, or lets a clip depend on its neighbours."""
    fusion, encoder = resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en"))
    clips, texts = [noise(16_000), noise(48_000), noise(9_000)], ["hello", "so be it", ""]
    full = EmotionRecogniser("mean", fusion, encoder).recognise(clips, texts)
    model = EmotionRecogniser("mean", fusion, encoder, precision="int8", max_batch=8)
    rounded = model.recognise(clips, texts)
    assert 0 < np.abs(full.scores - rounded.scores).max() < 0.2
    np.testing.assert_allclose(rounded.text_embedding, full.text_embedding, atol=1e-5)
    alone = [model.recognise([clip], [text]).scores[0] for clip, text in zip(clips, texts, strict=True)]
    np.testing.assert_allclose(
        rounded.scores, np.stack(alone), atol=1e-5
    )  # as in fp32; in one pass they differ by 0.01


def test_widths_and_labels_come_from_configs_alone(checkpoints, tmp_path):
    """Fails if asking for the schema reads weights: there are none in this folder that could be read."""
    for name in ("concat-es", "bert-es"):
        shutil.copytree(checkpoints / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        (tmp_path / name / "model.safetensors").write_bytes(b"not weights")
    fusion, encoder = resolve(str(tmp_path / "concat-es")), resolve(str(tmp_path / "bert-es"))
    widths = embedding_widths("concat", fusion, encoder)
    assert widths == {"audio_embedding": 768, "text_embedding": 768, "fused_embedding": 1536}
    assert labels_of(fusion) == ("anger", "disgust", "fear", "joy", "neutral", "sadness")
    assert embedding_widths("text", resolve(str(checkpoints / "text-es"))) == {"text_embedding": 64}


def test_unnamed_labels_are_refused(checkpoints, tmp_path):
    """Fails if classes without names reach the output as a guess."""
    source = checkpoints / "audio-es"
    names = {"0": "anger", "1": "calm", "2": "fear", "3": "joy", "4": "neutral", "5": "sadness"}
    unnamed = changed(source, tmp_path / "c", id2label={str(i): f"LABEL_{i}" for i in range(6)}, label2id=None)
    with pytest.raises(ConfigError, match="does not name its classes"):
        check("audio", unnamed)
    published = Checkpoint("UMUTeam/w2v-bert-emotion-es@main", unnamed.directory, "0" * 40, unnamed.sha256)
    assert labels_of(published) == tuple(label if label != "calm" else "disgust" for label in names.values())


@pytest.mark.parametrize(
    ("mode", "fusion", "said"),
    [
        ("concat", "mean-en", "misshapen.*classifier.dense.weight"),
        ("multihead", "mean-en", "missing: mult_attn_model"),
        ("mean", "multihead-en", "unexpected: mult_attn_model"),
        ("mean", "concat-en", "unexpected|misshapen"),
        ("audio", "text-en", "roberta"),
        ("text", "audio-en", "wav2vec2-bert"),
    ],
)
def test_a_checkpoint_of_another_mode_is_refused_before_the_job(checkpoints, mode, fusion, said):
    """Fails if the wrong checkpoint loads in part and predicts with random weights, as the reference does."""
    models = resolve(str(checkpoints / fusion)), resolve(str(checkpoints / "bert-en"))
    for load in (check, EmotionRecogniser):
        with pytest.raises(ConfigError, match=said):
            load(mode, *models)


def test_a_mode_without_its_encoder_is_refused(checkpoints):
    """Fails if a fusion mode runs on an absent text embedding."""
    with pytest.raises(ConfigError, match="sentence encoder"):
        EmotionRecogniser("mean", resolve(str(checkpoints / "mean-en")))


def test_a_roberta_sentence_encoder(checkpoints):
    """Fails if an encoder of the other supported family does not load out of a checkpoint that has a head on top."""
    fusion, encoder = resolve(str(checkpoints / "concat-en")), resolve(str(checkpoints / "text-en"))
    assert embedding_widths("concat", fusion, encoder)["fused_embedding"] == 768 + 64
    with pytest.raises(ConfigError, match="classifier"):  # a sequence classifier is not an encoder's pre-training head
        check("concat", fusion, encoder)


def test_a_text_model_without_its_tokenizer_is_refused(checkpoints, tmp_path):
    """Fails if a checkpoint copied without its tokenizer gives a score to sentences of nothing but unknown words."""
    folder = shutil.copytree(checkpoints / "bert-en", tmp_path / "bert")
    for path in folder.glob("*tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        check("mean", resolve(str(checkpoints / "mean-en")), resolve(str(folder)))


def test_the_real_config_builds_without_memory():
    """Fails if a check at the published size (580 M parameters) would allocate the weights."""
    import torch
    from transformers import Wav2Vec2BertConfig

    with torch.device("meta"):
        model = FusionModel(Wav2Vec2BertConfig(num_labels=7), "multihead", 768)
    parameters = {name: p for name, p in model.named_parameters() if not name.endswith("masked_spec_embed")}
    assert all(parameter.is_meta for parameter in parameters.values())
    assert sum(parameter.numel() for parameter in parameters.values()) > 580e6


def test_every_public_name_is_there():
    """Fails if a name that other layers import goes away."""
    assert all(hasattr(emotion, name) for name in emotion.__all__)


@pytest.mark.parametrize("offline", ["1", "0"])
def test_local_checkpoints_need_no_socket(checkpoints, offline):
    """Fails if loading from a directory asks any host for anything, HF_HUB_OFFLINE set or not, or loads ray."""
    program = f"""
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit(f"connected to {{arguments[1:]}}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
import numpy as np
from pipeline.models.emotion import EmotionRecogniser, check
from pipeline.models.checkpoints.weights import resolve
root = {str(checkpoints)!r}
models = resolve(root + "/mean-en"), resolve(root + "/bert-en")
check("mean", *models)
EmotionRecogniser("mean", *models, num_threads=1).recognise([np.ones(8000, np.float32)], ["hello"])
EmotionRecogniser("text", resolve(root + "/text-en")).recognise(None, ["hello"])
assert "ray" not in sys.modules
"""
    environment = {"HF_HUB_OFFLINE": offline, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_finds_no_memory_is_halved_for_good(checkpoints, monkeypatch, shortage):
    """Fails if a shortage costs a row that fits alone, changes a score, or has to be found out again by every shard."""
    models = resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en"))
    recogniser = EmotionRecogniser("mean", *models, max_batch=8)
    clips, texts = [noise(8_000 + 800 * n, n) for n in range(9)], [f"text {n}" for n in range(9)]
    expected = recogniser.recognise(clips, texts)
    network = recogniser.runner.model.network
    sizes, whole = [], network.forward

    def forward(features, mask, text):
        sizes.append(len(features))
        if len(features) > 2:
            raise shortage
        return whole(features, mask, text)

    monkeypatch.setattr(network, "forward", forward)
    found = recogniser.recognise(clips, texts)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.fused_embedding, expected.fused_embedding, atol=1e-4)
    assert sizes[:2] == [8, 4]
    sizes.clear()
    recogniser.recognise(clips, texts)
    assert max(sizes) <= 2


def test_a_clip_that_finds_no_memory_alone_says_so(mean, monkeypatch):
    """Fails if a shortage that halving cannot help ends in a loop, or as something other than a shortage."""

    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    network = mean.runner.model.network
    monkeypatch.setattr(network, "forward", forward)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        mean.recognise([noise(16_000)], ["a"])
    monkeypatch.setattr(network, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        mean.recognise([noise(16_000)], ["a"])


def test_texts_that_find_no_memory_together_are_halved(checkpoints, monkeypatch):
    """Fails if a sentence encoder short of memory costs a row, changes a result, or tries the same size again."""
    recogniser = EmotionRecogniser("mean", resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en")))
    model = recogniser.runner.model.text
    texts, real, sizes = [f"Sentence number {n}." for n in range(8)], model._forward, []
    expected = model.run(texts).embedding

    def small_memory(ids):
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(ids)

    monkeypatch.setattr(model, "_forward", small_memory)
    np.testing.assert_allclose(model.run(texts).embedding, expected, atol=1e-5)
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) <= 2


@pytest.mark.parametrize("model", ["text-en", "audio-es", "mean-en"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem_type": "Multi-Label"}, "problem_type 'Multi-Label'"),
        ({"problem_type": ["single_label_classification"]}, "problem_type"),
        ({"function_to_apply": "softmax", "problem_type": "regression"}, "disagree"),
        ({"num_labels": 1, "id2label": None, "label2id": None}, "does not name its classes|misshapen"),
        (
            {"id2label": {"0": "anger"}, "label2id": None, "problem_type": "single_label_classification"},
            "one output|`num_labels > 1`|misshapen",
        ),
    ],
)
def test_a_head_that_cannot_be_known_is_refused(checkpoints, tmp_path, model, change, said):
    """Fails if outputs get an activation by guess, such as a softmax of sigmoid logits, or a softmax over one output."""
    fusion, mode = changed(checkpoints / model, tmp_path / "model", **change), model.partition("-")[0]
    encoder = resolve(str(checkpoints / "bert-en")) if mode == "mean" else None
    for load in (check, EmotionRecogniser):
        with pytest.raises(ConfigError, match=said) as refused:
            load(mode, fusion, encoder)
        assert "\n" not in str(refused.value) and str(fusion.directory) in str(refused.value)


@pytest.mark.parametrize("change", [{"problem_type": None}, {"problem_type": "single_label_classification"}])
def test_a_model_that_chooses_one_label_is_accepted(checkpoints, tmp_path, change):
    """The control: what transformers writes after ordinary training, and what an untrained config says."""
    check("text", changed(checkpoints / "text-en", tmp_path / "model", **change))

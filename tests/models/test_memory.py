"""What a padded second takes, by the allocator's own count, and how long a batch becomes of the memory that is left."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING, Wav2Vec2BertConfig

from pipeline.models import emotion, runner
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.families import waveforms
from pipeline.models.memory import memory_left
from pipeline.models.networks.fusion import FusionModel
from tests.support.tiny_models import config_of

GB = 10**9


def peak_bytes(work: Callable[..., object], *arguments: object) -> int:
    """The most that torch's allocator had given out at once while `work` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(*arguments)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(live.max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},  # as published, but for the number of layers
        {"intermediate_size": 12_000},
        {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "use_weighted_layer_sum": True},
    ],
    ids=["published", "wide", "narrow"],
)
def test_a_pass_takes_what_is_planned_for_it(sizes, precision):
    """Fails if a pass takes more than its batch was planned for, or so much less that devices would be left half empty."""
    config = Wav2Vec2BertConfig(**{"num_hidden_layers": 1, "num_labels": 3, "classifier_proj_size": 96, **sizes})
    model = FusionModel(config, "audio").eval().requires_grad_(False)
    model.set_precision(emotion.PRECISIONS[precision])
    for batch, frames in ((4, 50), (2, 600)):
        features, mask = torch.randn(batch, frames, 160), torch.ones(batch, frames, dtype=torch.long)
        mask[0, -20:] = 0
        planned = batch * frames * model.bytes_per_frame
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # what a device without a fused kernel takes
            assert peak_bytes(model, features, mask) <= planned
    with torch.inference_mode():  # the longer batch, by whichever kernel is best
        assert peak_bytes(model, features, mask) >= planned / 3


@pytest.fixture
def card(monkeypatch):
    """A card of 16 GB, of which 3 are this process's tensors, 1 is kept for it by torch, and 2 are others'."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4 * GB)


@pytest.mark.parametrize(
    ("device", "share", "left"), [("cuda", 1.0, 11), ("cuda:1", 0.5, 5), ("cuda", 0.1, 0), ("cpu", 0.0, math.inf)]
)
def test_memory_left(card, device, share, left):
    """Fails if a neighbour that is not loaded yet finds its half of the card taken, or what torch keeps counts as lost."""
    assert memory_left(device, share) == left * GB


def test_batches_are_as_long_as_memory_allows(checkpoints, monkeypatch):
    """Fails if a small card, or a small share of one, is asked for as much as a large one, or a person is overruled."""
    asked, left = [], [math.inf]
    monkeypatch.setattr(runner, "memory_left", lambda device, share: asked.append((device, share)) or left[-1])

    def batches_of_seven_seconds(**settings: float) -> int:
        asked.clear()
        models = resolve(str(checkpoints / "mean-en")), resolve(str(checkpoints / "bert-en"))
        recogniser = EmotionRecogniser("mean", *models, max_batch=64, gpu_share=0.25, **settings)
        assert not asked, "asked before all models of the process are loaded"
        clips = [np.random.default_rng(n).normal(0, 0.1, 16_000).astype(np.float32) for n in range(7)]
        recogniser.recognise(clips, ["a text"] * 7)
        first = recogniser.take_figures().batches
        recogniser.recognise(clips, ["a text"] * 7)
        assert recogniser.take_figures().batches == first
        left[0] = left_s * recogniser.runner.model.declaration.bytes_per_s
        return first

    left_s = 5.0  # of which four fifths are planned with
    assert batches_of_seven_seconds() == 1 and asked == [("cpu", 0.25)]
    assert batches_of_seven_seconds() == 2
    assert batches_of_seven_seconds(max_batch_s=2.0) == 4 and not asked
    left_s = 0.5
    batches_of_seven_seconds()
    assert batches_of_seven_seconds() == 7, "one alone is always tried"


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("model_type", waveforms.ENCODERS)
def test_a_padded_second_of_any_encoder_is_what_the_batches_are_planned_with(model_type, norm):
    """Fails if batches of 30 s would take more memory than planned, or so much less that a card stays half empty."""
    config = config_of(model_type, hidden_size=64, intermediate_size=256, feat_extract_norm=norm, mask_time_prob=0.0)
    network = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)](config).eval()
    values = torch.zeros(1, 30 * 16_000)
    with torch.inference_mode():
        peak = peak_bytes(lambda: network(input_values=values))
    assert 0.85 < 30 * waveforms.bytes_per_s(config, torch.float32) / peak < 2.2

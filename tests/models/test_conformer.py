"""The conformer against transformers' own: every frame of every length, padded or not, in bounded memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from pipeline.errors import ConfigError
from pipeline.models.networks.attention import QUERY_BLOCK, RelativeKeyAttention
from pipeline.models.networks.conformer import Conformer


def small_config(**changes: object) -> Wav2Vec2BertConfig:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
    return Wav2Vec2BertConfig(**{**sizes, "num_labels": 3, "classifier_proj_size": 768, **changes})


@pytest.fixture
def encoders():
    """A stock encoder and ours with the same weights."""
    torch.manual_seed(3)
    config = small_config()
    stock_config = copy.deepcopy(config)
    stock_config._attn_implementation = "sdpa"
    stock = Wav2Vec2BertModel(stock_config).eval()
    for parameter in stock.parameters():  # as initialised, attention hardly moves the output
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Conformer(config).eval()
    weights = stock.state_dict()
    del weights["masked_spec_embed"]  # SpecAugment's, for training
    ours.load_state_dict(weights)
    return stock, ours


@pytest.mark.parametrize("length", [1, 2, 9, 64, 73, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK + 40])
@pytest.mark.parametrize("padded", [False, True])
def test_the_encoder_is_stocks(encoders, length, padded):
    """Fails when a distance is clamped, spread or masked differently at any block border, or a layer computes otherwise."""
    stock, ours = encoders
    features = torch.randn(2, length, 160)
    mask = torch.ones(2, length, dtype=torch.long)
    if padded:
        mask[1, max(1, length // 3) :] = 0
    with torch.inference_mode():
        expected = stock(features, attention_mask=mask).last_hidden_state
        actual = ours(features, ~mask.bool() if padded else None)
    heard = mask.bool()
    assert (actual - expected)[heard].abs().max() < 2e-6  # equal bits but where einsum takes another kernel


def test_control_attention_without_its_bias_differs(encoders):
    """Fails if the identity above would hold with the relative positions left out."""
    stock, ours = encoders
    for layer in ours.encoder.layers:
        layer.self_attn.distance_embedding.weight.data.zero_()
    features = torch.randn(1, 50, 160)
    with torch.inference_mode():
        difference = ours(features) - stock(features).last_hidden_state
    assert difference.abs().max() > 1e-3


def test_attention_memory_is_linear_in_the_clip():
    """Fails if any tensor of a long clip grows with the square of its length, as stock's (L, L, head_size) does."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return result

    length, config = 3000, small_config()
    attention = RelativeKeyAttention(config.hidden_size, config.num_attention_heads, left=64, right=8).eval()
    with torch.inference_mode(), Largest() as largest:
        attention(torch.randn(1, length, config.hidden_size))
    assert largest.numel <= config.num_attention_heads * QUERY_BLOCK * length


def test_control_another_order_of_the_layers_differs(encoders):
    """Fails if the identity above would hold for an encoder that mixes its layers up."""
    stock, ours = encoders
    ours.encoder.layers = torch.nn.ModuleList(reversed(ours.encoder.layers))
    features = torch.randn(1, 50, 160)
    with torch.inference_mode():
        assert (ours(features) - stock(features).last_hidden_state).abs().max() > 1e-3


def test_states_are_stocks(encoders):
    """Fails if the weighted sum of layers would be of other states, or of one fewer."""
    stock, ours = encoders
    features = torch.randn(1, 40, 160)
    with torch.inference_mode():
        expected = stock(features, output_hidden_states=True).hidden_states
        for mine, theirs in zip(ours.states(features, None), expected, strict=True):
            assert (mine - theirs).abs().max() < 2e-6


@pytest.mark.parametrize(
    "change",
    [{"position_embeddings_type": "rotary"}, {"hidden_act": "relu"}, {"add_adapter": True},
     {"num_attention_heads": 3}, {"conv_depthwise_kernel_size": 30}],
)  # fmt: skip
def test_what_is_not_this_encoder_is_refused(change):
    """Fails if a checkpoint with other positions, activations or an adapter is run as if it had none."""
    with pytest.raises(ConfigError, match="its config"):
        Conformer(small_config(**change))


def test_the_callers_config_is_left_alone():
    """Fails if a config that others hold is edited."""
    config = small_config()
    before = config.to_dict()
    Conformer(config)
    assert config.to_dict() == before

"""The fusion module: our attention against the stock one, and the arithmetic that a batch must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from pipeline.errors import ConfigError
from pipeline.models.attention import QUERY_BLOCK, RelativeKeyAttention, build_encoder
from pipeline.models.fusion import CrossAttentionHead, FusionModel, MultiHeadFusion, fused_width


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
    ours = build_encoder(copy.deepcopy(config)).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize("length", [1, 2, 9, 64, 73, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK + 40])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_stocks(encoders, length, padded):
    """Fails when a distance is clamped, spread or masked differently at any block border."""
    stock, ours = encoders
    features = torch.randn(2, length, 160)
    mask = torch.ones(2, length, dtype=torch.long)
    if padded:
        mask[1, max(1, length // 3) :] = 0
    with torch.inference_mode():
        expected = stock(features, attention_mask=mask).last_hidden_state
        actual = ours(features, attention_mask=mask).last_hidden_state
    heard = mask.bool()
    assert (actual - expected)[heard].abs().max() < 2e-6  # equal bits but where einsum takes another kernel


def test_control_attention_without_its_bias_differs(encoders):
    """Fails if the identity above would hold with the relative positions left out."""
    stock, ours = encoders
    for layer in ours.encoder.layers:
        layer.self_attn.distance_embedding.weight.data.zero_()
    features = torch.randn(1, 50, 160)
    with torch.inference_mode():
        difference = ours(features).last_hidden_state - stock(features).last_hidden_state
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
    attention = RelativeKeyAttention(config).eval()
    with torch.inference_mode(), Largest() as largest:
        attention(torch.randn(1, length, config.hidden_size))
    assert largest.numel <= config.num_attention_heads * QUERY_BLOCK * length


def test_other_position_types_stay_stock():
    """Fails if a checkpoint with rotary positions gets our relative-key layer."""
    encoder = build_encoder(small_config(position_embeddings_type="rotary"))
    assert not any(isinstance(module, RelativeKeyAttention) for module in encoder.modules())


def test_the_callers_config_is_left_alone():
    """Fails if the config object is shared: a second model then silently switches the first one's attention."""
    config = small_config()
    before = config.to_dict()
    model = FusionModel(config, "audio")
    assert model.wav2vec2_bert.config is not config
    assert config.to_dict() == before


def test_multihead_is_the_one_item_attention():
    """Fails if the affine form differs from attention with one key, or if items of a batch see each other."""
    torch.manual_seed(5)
    head = CrossAttentionHead(48).eval()
    audio, text = torch.randn(4, 48), torch.randn(4, 48)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value) + value

    with torch.inference_mode():
        one_by_one = [
            head.linear_out(
                torch.cat(
                    (
                        attend(head.norm(head.Wq(t)), head.norm(head.Wk(a)), head.Wv(a)),
                        attend(head.Wq_reverse(a), head.Wk_reverse(t), head.Wv_reverse(t)),
                    ),
                    dim=-1,
                )
            )
            for a, t in zip(audio.split(1), text.split(1), strict=True)
        ]
        assert torch.allclose(head(audio, text), torch.cat(one_by_one), atol=1e-6)


def test_weighted_layer_sum():
    """Fails if a layer is left out, the input layer is not counted, or the weights are not put through softmax."""
    torch.manual_seed(6)
    model = FusionModel(small_config(use_weighted_layer_sum=True), "audio").eval()
    model.layer_weights.data = torch.tensor([0.5, -1.0, 2.0])
    features, mask = torch.randn(1, 20, 160), torch.ones(1, 20, dtype=torch.long)
    with torch.inference_mode():
        states = model.wav2vec2_bert(features, attention_mask=mask, output_hidden_states=True).hidden_states
        summed = sum(w * s for w, s in zip(torch.tensor([0.5, -1.0, 2.0]).softmax(0), states, strict=True))
        assert torch.allclose(model(features, mask).audio_embedding, model.projector(summed).mean(1), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "audio", "text", "said"),
    [("mean", 768, 512, "one width"), ("multihead", 768, 512, "one width"), ("concat", 768, None, "sentence encoder"),
     ("meen", 768, 768, "did you mean 'mean'")],
)  # fmt: skip
def test_widths_that_cannot_be_fused_are_refused(mode, audio, text, said):
    """Fails if a wrong sentence encoder is found out by a shape error in the middle of a job."""
    with pytest.raises(ConfigError, match=said):
        fused_width(mode, audio, text)


def test_low_precision_stays_in_the_encoder():
    """Fails if pooling over 8,000 frames, fusion or head would run in bf16."""
    model = FusionModel(small_config(), "mean", 768).eval()
    model.set_precision(torch.bfloat16)
    with torch.inference_mode():
        output = model(torch.randn(1, 30, 160), torch.ones(1, 30, dtype=torch.long), torch.randn(1, 768))
    assert {output.logits.dtype, output.audio_embedding.dtype, output.fused_embedding.dtype} == {torch.float32}
    assert model.wav2vec2_bert.dtype == torch.bfloat16


def test_multihead_is_one_matrix():
    """Fails if folding loses a head, a bias, the doubling or the side; the last two are shown to be seen."""
    torch.manual_seed(5)
    stock, (audio, text) = MultiHeadFusion(96).eval(), torch.randn(2, 16, 96)
    with torch.inference_mode():
        expected, folded = stock(audio, text), stock.folded()
        assert (folded(audio, text) - expected).abs().max() < 2e-6
        assert (folded(text, audio) - expected).abs().max() > 0.1
        stock.heads[7].Wv_reverse.bias += 1.0
        assert (stock(audio, text) - folded(audio, text)).abs().max() > 1e-2

"""The fusion module: the arithmetic that a batch must not change."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.errors import ConfigError
from pipeline.models.networks.fusion import CrossAttentionHead, FusionModel, MultiHeadFusion, fused_width
from tests.models.test_conformer import small_config


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
        states = list(model.wav2vec2_bert.states(features, None))
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

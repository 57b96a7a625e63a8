"""BERT and RoBERTa against transformers' own: padded batches, classifiers, RoBERTa's own count of positions."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from pipeline.errors import ConfigError
from pipeline.models.networks.bert import Bert, BertClassifier, RobertaClassifier

SIZES = {"vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3,
         "max_position_embeddings": 80, "num_labels": 5}  # fmt: skip
CONFIGS = {"bert": BertConfig(**SIZES), "roberta": RobertaConfig(**SIZES)}
CLASSIFIERS = {"bert": (BertForSequenceClassification, BertClassifier),
               "roberta": (RobertaForSequenceClassification, RobertaClassifier)}  # fmt: skip
ENCODERS = {"bert": (BertModel, Bert), "roberta": (RobertaModel, Bert)}


def alike(kind, pair):
    """A stock model and ours with the same weights."""
    torch.manual_seed(4)
    stock = pair[0](CONFIGS[kind], **({} if pair in CLASSIFIERS.values() else {"add_pooling_layer": False})).eval()
    for parameter in stock.parameters():  # as initialised, layers hardly move what comes in
        torch.nn.init.normal_(parameter, std=0.2)
    ours = pair[1](CONFIGS[kind]).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def batch(kind, lengths):
    """Token ids [B, L] and their mask; the padding is what the kind pads with."""
    longest = max(lengths)
    ids = torch.randint(5, 90, (len(lengths), longest))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return ids.where(mask.bool(), torch.tensor(CONFIGS[kind].pad_token_id)), mask


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("lengths", [[1], [40], [3, 40, 17], [2, 2]])
def test_encoder_is_stocks(kind, lengths):
    """Fails when positions, the mask, an activation or the order of norm and sum differ."""
    stock, ours = alike(kind, ENCODERS[kind])
    ids, mask = batch(kind, lengths)
    with torch.inference_mode():
        difference = ours(ids, mask) - stock(ids, attention_mask=mask).last_hidden_state
        blind = ours(ids, torch.ones_like(mask)) - stock(ids, attention_mask=mask).last_hidden_state
    assert difference[mask.bool()].abs().max() < 2e-6
    assert (blind[mask.bool()].abs().max() > 1e-3) == (min(lengths) < max(lengths))  # the mask is seen


@pytest.mark.parametrize("kind", CONFIGS)
def test_classifier_is_stocks(kind):
    """Fails when the pooler, the head or its tanh is another, or the wrong layer's first token is given."""
    stock, ours = alike(kind, CLASSIFIERS[kind])
    ids, mask = batch(kind, [3, 40, 17])
    with torch.inference_mode():
        expected = stock(ids, attention_mask=mask, output_hidden_states=True)
        first, logits = ours(ids, mask)
    assert (logits - expected.logits).abs().max() < 2e-6
    assert (first - expected.hidden_states[-1][:, 0]).abs().max() < 2e-6


def test_roberta_does_not_count_padding_written_in_the_text():
    """Fails on a text that spells the padding token: stock skips its position, and so must we."""
    stock, ours = alike("roberta", ENCODERS["roberta"])
    ids, mask = batch("roberta", [12])
    ids[0, 5] = CONFIGS["roberta"].pad_token_id
    with torch.inference_mode():
        difference = ours(ids, mask) - stock(ids, attention_mask=mask).last_hidden_state
    assert difference.abs().max() < 2e-6


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"is_decoder": True}, {"num_attention_heads": 3}])
def test_what_is_not_this_model_is_refused(change):
    """Fails if a checkpoint of another make is run as if it were BERT."""
    config = BertConfig(**{**SIZES, "num_attention_heads": 4})
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=r"config|heads"):
        Bert(config)

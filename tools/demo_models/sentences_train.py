"""Train the small BERT to recognise the emotion that a sentence's wording suggests, in both languages.

One model has two uses: its frozen encoder is the sentence encoder of the fusion modes, and with its head it is the text
mode's classifier. About a minute on one thread.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tools.demo_models.acting import PROSODY
from tools.demo_models.grammar import LANGUAGES, draw, draw_salad, emotions_of, vocabulary

EMOTIONS = tuple(sorted(PROSODY))
WIDTH = 128
MAX_TOKENS = 512
_BATCH, _STEPS, _LEARNING_RATE = 64, 900, 1e-3
_SMOOTHING = 0.2
"""Share of labels that differ from the wording, as one clip in five is acted against its wording (`corpus.AGREEMENT`)."""
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PUNCTUATION = ".,;:!?¡¿'\"-…()"

log = logging.getLogger(__name__)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of the words of the grammar, and single letters for others; case is ignored."""
    words = sorted({word for language in LANGUAGES for word in vocabulary(language)})
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789áéíóúüñ"})
    tokens = [*_SPECIALS, *_PUNCTUATION, *dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), *words])]
    built = Tokenizer(models.WordPiece(vocab={t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokens.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=MAX_TOKENS, **names)


def train(*, seed: int) -> BertForSequenceClassification:
    """Return the classifier over `EMOTIONS`, with its encoder under `.bert`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokens = tokenizer()
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        id2label=dict(enumerate(EMOTIONS)),
        label2id={emotion: index for index, emotion in enumerate(EMOTIONS)},
    )
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    for step in range(_STEPS):
        texts, emotions = zip(*(_example(rng) for _ in range(_BATCH)), strict=True)
        encoded = tokens(list(texts), padding=True, return_tensors="pt")
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        targets = torch.tensor([EMOTIONS.index(emotion) for emotion in emotions])
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=_SMOOTHING)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min((step + 1) / 50, 1.0, 2 * (_STEPS - step) / _STEPS)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            log.info("sentences %d/%d: loss %.3f", step + 1, _STEPS, loss.item())
    return model.eval()


@torch.inference_mode()
def embed(model: BertForSequenceClassification, texts: Sequence[str]) -> NDArray[np.float32]:
    """[CLS] of each text, float32 [N, width]: what the frozen sentence encoder gives."""
    tokens = tokenizer()
    found = []
    for start in range(0, len(texts), _BATCH):
        encoded = tokens(list(texts[start : start + _BATCH]), padding=True, return_tensors="pt")
        states = model.bert(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        found.append(states.last_hidden_state[:, 0].numpy())
    return np.concatenate(found)


def _example(rng: random.Random) -> tuple[str, str]:
    """Draw a sentence of the training split in a form that a transcriber or a person may write."""
    language = rng.choice(LANGUAGES)
    emotion = rng.choice(emotions_of(language))
    words = draw(rng, language, emotion, "train").words
    if rng.random() < 0.5:
        wrong = draw_salad(rng, language).words
        words = [rng.choice(wrong) if rng.random() < 0.06 else word for word in words if rng.random() > 0.06]
    ending = rng.choice(("", "", ".", "!", "?", "..."))
    return (" ".join(words) or "the") + ending, emotion

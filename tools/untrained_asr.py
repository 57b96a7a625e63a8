"""Write a tiny Whisper with random weights in CTranslate2 form, so that the real loading and decoding code can run.

usage: python tools/untrained_asr.py OUT_DIR

It has Whisper's special tokens, window and mel filters, and hears nothing: it says the same syllables to everything. For
tests and for a demo that says so; quality is not its business. Weights depend on `_SEED` alone. Takes about 5 s.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

_SEED = 7
_LANGUAGES = ("en", "es", "fr", "de")
_TIMESTAMPS = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
_SYLLABLES = [f"Ġ{consonant}{vowel}" for consonant in "bdfgklmnprst" for vowel in "aeiou"]
_TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")


def _tokenizer() -> Tokenizer:
    """Syllables over a byte alphabet, the empty token by which CTranslate2 knows a multilingual model, and Whisper's specials."""
    words = [*_SYLLABLES, *sorted(pre_tokenizers.ByteLevel.alphabet()), ""]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    languages = [f"<|{code}|>" for code in _LANGUAGES]
    specials = ["<|endoftext|>", "<|startoftranscript|>", *languages, *_TASKS]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in _TIMESTAMPS])
    return tokenizer


def write(target: Path) -> Path:
    """Write the model into `target`, which must not exist or be empty; returns it."""
    torch.manual_seed(_SEED)
    tokenizer = _tokenizer()
    end = tokenizer.token_to_id("<|endoftext|>")
    start = tokenizer.token_to_id("<|startoftranscript|>")
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=tokenizer.get_vocab_size(),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_mel_bins=80,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
        )
    )
    with torch.no_grad():
        # spread the logits over tokens and positions, or one syllable would be said for ever
        model.model.decoder.embed_tokens.weight.mul_(8.0)
        model.model.decoder.embed_positions.weight.normal_(std=2.0)
        model.model.decoder.embed_tokens.weight[end].normal_(std=0.35)  # zero as padding: it would never end
    lang_to_id = {f"<|{code}|>": tokenizer.token_to_id(f"<|{code}|>") for code in _LANGUAGES}
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id=lang_to_id,
        task_to_id={task: tokenizer.token_to_id(f"<|{task}|>") for task in ("translate", "transcribe")},
        no_timestamps_token_id=tokenizer.token_to_id("<|notimestamps|>"),
        suppress_tokens=[token for token in range(len(_SYLLABLES), tokenizer.get_vocab_size()) if token != end],
        begin_suppress_tokens=[end],
        decoder_start_token_id=start,
        eos_token_id=end,
        max_length=448,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
        fast.save_pretrained(folder)
        copied = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(folder, copy_files=copied).convert(str(target), force=True)
    # transformers 5 keeps these from the converter; faster-whisper detects languages by them
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["lang_ids"] = sorted(lang_to_id.values())
    config.setdefault("alignment_heads", [[0, 0]])
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return target


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))

"""Tokenizer of the small Whisper: whole words, a byte alphabet, and Whisper's special tokens under their own names."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tools.demo_models.grammar import LANGUAGES, vocabulary

TIMESTAMP_S = 0.02
NUM_TIMESTAMPS = 1_501
END, START, NO_SPEECH, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"
TASKS = ("<|translate|>", "<|transcribe|>")
_SPECIALS = (
    END,
    START,
    *(f"<|{code}|>" for code in LANGUAGES),
    *TASKS,
    "<|startoflm|>",
    "<|startofprev|>",
    NO_SPEECH,
    NO_TIMESTAMPS,
)


@cache
def words() -> tuple[str, ...]:
    """Return every word of every language, sorted; a word's index is its token id."""
    return tuple(sorted({word for language in LANGUAGES for word in vocabulary(language)}))


@cache
def tokenizer() -> Tokenizer:
    """Words with their leading blank, single bytes for anything else, the empty token by which CTranslate2 knows a
    multilingual model, then the special tokens in Whisper's order."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = [byte_level.pre_tokenize_str(f" {word}")[0][0] for word in words()]
    tokens = [*pieces, *sorted(pre_tokenizers.ByteLevel.alphabet()), ""]
    built = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    built.pre_tokenizer = byte_level
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True) for token in _SPECIALS])
    stamps = [f"<|{TIMESTAMP_S * step:.2f}|>" for step in range(NUM_TIMESTAMPS)]
    built.add_tokens([AddedToken(token, special=False) for token in stamps])
    return built


@cache
def token_id(token: str) -> int:
    """Return the id of a special token. Raises: KeyError."""
    found = tokenizer().token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)


@cache
def word_id(word: str) -> int:
    """Return the id of a word of the grammar. Raises: ValueError."""
    return words().index(word)


def timestamp_id(seconds: float) -> int:
    """Return the id of the nearest of the 1,501 timestamps."""
    return token_id("<|0.00|>") + min(round(seconds / TIMESTAMP_S), NUM_TIMESTAMPS - 1)

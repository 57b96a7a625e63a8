"""Export of the small Whisper in Hugging Face form, and in the CTranslate2 form that faster-whisper loads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tools.demo_models import whisper_vocabulary as vocabulary
from tools.demo_models.grammar import LANGUAGES


def write(model: WhisperForConditionalGeneration, target: Path) -> None:
    """Convert to fp16 into `target`, replacing its contents.

    The converter drops `lang_ids` and `alignment_heads` under transformers 5; they are put back, because faster-whisper
    detects languages and aligns words by them.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        copied = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(folder, copy_files=copied).convert(str(target), quantization="float16", force=True)
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["lang_ids"] = sorted(_lang_to_id().values())
    config["alignment_heads"] = [[layer, head] for layer in range(model.config.decoder_layers) for head in range(4)]
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def save(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Write weights in fp16, generation settings, the tokenizer and the feature extractor."""
    end = vocabulary.token_id(vocabulary.END)
    # never generated: single bytes, the empty token, and every special one but the end, languages and timestamps
    bytes_and_empty = list(range(len(vocabulary.words()), end))
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id=_lang_to_id(),
        task_to_id={task.strip("<|>"): vocabulary.token_id(task) for task in vocabulary.TASKS},
        no_timestamps_token_id=vocabulary.token_id(vocabulary.NO_TIMESTAMPS),
        suppress_tokens=bytes_and_empty,
        begin_suppress_tokens=[end],
        decoder_start_token_id=vocabulary.token_id(vocabulary.START),
        eos_token_id=end,
        max_length=448,
    )
    model.half().save_pretrained(folder)
    model.float()
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.tokenizer(),
        eos_token=vocabulary.END,
        bos_token=vocabulary.END,
        unk_token=vocabulary.END,
    )
    fast.save_pretrained(folder)


def _lang_to_id() -> dict[str, int]:
    return {f"<|{code}|>": vocabulary.token_id(f"<|{code}|>") for code in LANGUAGES}

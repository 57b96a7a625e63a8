"""Published models by language and mode, as constants that need no imports."""

from __future__ import annotations

EMOTION_MODELS = {
    ("en", "text"): "UMUTeam/roberta-emotion-en",
    ("en", "audio"): "UMUTeam/w2v-bert-emotion-en",
    ("en", "concat"): "UMUTeam/w2v-bert-beto-concat-emotion-en",
    ("en", "mean"): "UMUTeam/w2v-bert-beto-mean-emotion-en",
    ("en", "multihead"): "UMUTeam/w2v-bert-beto-multihead-emotion-en",
    ("es", "text"): "UMUTeam/MarIA-emotion-es",
    ("es", "audio"): "UMUTeam/w2v-bert-emotion-es",
    ("es", "concat"): "UMUTeam/w2v-bert-beto-concat-emotion-es",
    ("es", "mean"): "UMUTeam/w2v-bert-beto-mean-emotion-es",
    ("es", "multihead"): "UMUTeam/w2v-bert-beto-multihead-emotion-es",
}
"""(language, mode) -> hub id, from the reference toolkit's model.json at 3859029."""

SENTENCE_ENCODERS = {"en": "google-bert/bert-base-uncased", "es": "dccuchile/bert-base-spanish-wwm-uncased"}
"""Frozen BERTs whose [CLS] the fusion modes take. The model card says RoBERTa; the reference's code loads these."""

ENTRY_POINTS = "speech_emotion.models"
"""Entry point group of packages that add families of emotion models; an entry's name is a `model_type`."""

DEFAULT_ASR = "large-v3-turbo"

ASR_MODELS = {
    **{size: f"Systran/faster-whisper-{size}" for size in ("tiny", "base", "small", "medium")},
    **{f"{size}.en": f"Systran/faster-whisper-{size}.en" for size in ("tiny", "base", "small", "medium")},
    **{size: f"Systran/faster-whisper-{size}" for size in ("large-v1", "large-v2", "large-v3")},
    "large": "Systran/faster-whisper-large-v3",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
"""Names of faster-whisper 1.2.1 (`faster_whisper.utils._MODELS`; a test compares), copied to avoid importing it."""

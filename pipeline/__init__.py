"""Turn corpora of speech into tables of emotion: readers, models, plan, commit and the Ray engine."""

__version__ = "0.1.0"

SAMPLING_RATE = 16_000
"""Hz. What Whisper, Wav2Vec2-BERT and Silero VAD were trained on. Here, where reading it costs no import of Arrow."""

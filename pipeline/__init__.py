"""Speech emotion recognition for corpora: manifests, audio, models, datasets and the Ray engine."""

__version__ = "0.1.0"

SAMPLING_RATE = 16_000
"""Sampling rate in Hz on which Whisper, Wav2Vec2-BERT and Silero VAD were trained. Importing it here needs no Arrow."""

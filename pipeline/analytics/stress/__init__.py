"""Stress test: the same clips under noise, gain, clipping, codecs and reverberation, and what that does to their labels."""

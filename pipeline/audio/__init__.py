"""Bytes in, 16 kHz mono out: decoders, the guards before them, and cutting by voice activity."""

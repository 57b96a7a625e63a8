"""Checkpoints: sources, verification, conversion and preparation."""

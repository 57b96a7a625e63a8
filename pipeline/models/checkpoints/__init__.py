"""Checkpoints: where they come from, how they are verified, converted and prepared."""

"""Evaluation of an output against the labels and reference texts of its manifest."""

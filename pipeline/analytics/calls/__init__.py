"""Metrics of conversations: who talked when and how, per call and per speaker."""

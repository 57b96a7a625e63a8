"""Families of emotion models: one protocol, and one implementation of it for each published layout."""

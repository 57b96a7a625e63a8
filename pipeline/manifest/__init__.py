"""Manifest reading: every supported format as a stream of rows and rejects."""

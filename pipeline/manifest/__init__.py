"""Manifests in any form we read, as streams of rows and rejects."""

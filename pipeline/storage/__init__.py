"""Bytes in and out: URIs, retries, object stores and local disk. Imports nothing of the pipeline but errors."""

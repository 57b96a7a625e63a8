"""Audits of an output against the invariants of this pipeline. Reads only."""

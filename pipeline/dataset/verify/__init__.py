"""Audits an output against what this pipeline promises of it; reads only."""

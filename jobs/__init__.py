"""Entry points: one small file per job, each run as ``python -m jobs.<name>``."""

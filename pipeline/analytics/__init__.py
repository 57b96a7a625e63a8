"""Analyses of outputs: summaries, drift, evaluation, reports, search and copies in other formats. Ray is not needed."""

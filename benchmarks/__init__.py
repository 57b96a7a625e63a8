"""Measurements behind every figure of docs/performance.md: ratios within one run, exactness checked in the same run."""

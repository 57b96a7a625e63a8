"""Benchmarks behind the figures of docs/performance.md: ratios within one run, with equality checked in the same run."""

"""Benchmarks: real pairs with ground truth, this library and its peers on them, in one run.

`python -m Testing.benchmarks --help` from the repository root; the results are in RESULTS.md.
"""

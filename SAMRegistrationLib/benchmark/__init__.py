"""Registration methods side by side: ours and our peers on the same pairs, in the same run, judged by one code.

`samreg benchmark SUITE -o DIR`; a suite (`suites/*.json`, or a file of your own) names datasets, pairs, methods
and metrics. Where other code plugs in: `datasets.KINDS` (where pairs come from), `metrics.METRICS` (how an
answer is judged) and `methods.METHODS` (what registers).
"""

"""What the project measures of itself; the results are in RESULTS.md.

The benchmark is a part of the product, `samreg benchmark`; here lie what chose its pairs (`choose_pairs`) and
measurements that only developers need.
"""

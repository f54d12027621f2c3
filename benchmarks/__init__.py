"""Programs that measure the product and say whether it meets its bars: `python benchmarks/latency.py` and its neighbours."""

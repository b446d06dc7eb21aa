"""Benchmarks: `python -m bench` measures the backends, `python -m bench.compare` the peers.

`workloads.py` is the one registry of what is measured; `measure.py` says how.
"""

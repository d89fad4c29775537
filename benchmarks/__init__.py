"""Measurements beside the peers, each a program of its own: `python -m benchmarks.restore --help`."""

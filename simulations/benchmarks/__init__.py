"""Benchmarks: `python -m simulations.benchmarks NAME [--json]`; a new one is a file and a line."""

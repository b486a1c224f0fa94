"""Measurements against named peers: ``python -m benchmarks.NAME`` prints a table and, last, one line of JSON."""

"""Compares runs: from per-session metrics to intervals, paired tests and tables."""

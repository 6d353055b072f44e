"""Comparing runs: per-session metrics in, intervals, paired tests and tables out."""

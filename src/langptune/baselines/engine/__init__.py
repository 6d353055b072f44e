"""Adapters of the libraries behind baselines."""

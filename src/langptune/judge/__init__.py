"""Judges: a language model compares two profiles of one user (``ask``, ``prompt``, ``verdict``, ``summary``)."""

"""Judges: a language model compares two profiles of a user (``prompt``, ``ask``, ``verdict``, ``summary``)."""

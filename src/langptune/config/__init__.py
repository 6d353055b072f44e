"""Typed configuration: the single truth for keys, defaults, errors and the documented schema."""

"""Typed configuration: the one definition of keys, defaults, error messages and the documented schema."""

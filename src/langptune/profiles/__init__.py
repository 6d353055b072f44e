"""Profiles: batched, sharded, resumable generation of natural-language user profiles."""

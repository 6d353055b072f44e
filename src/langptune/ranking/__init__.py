"""Scores to ranks: the exact full-catalogue rank, and the text decoders that produce scores."""

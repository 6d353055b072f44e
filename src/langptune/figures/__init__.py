"""Figures, one to a file; those of a comparison are the entries of ``langptune.figures.comparison``."""

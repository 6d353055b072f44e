"""Measures of profiles: readable, faithful, informative, steerable. None of them takes part in training."""

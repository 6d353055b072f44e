"""What profiles are like: readable, faithful, informative, steerable. Nothing here takes part in training."""

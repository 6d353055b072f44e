"""The frame of all baselines: their protocol, their training data, and how they are tried, fitted and ranked."""

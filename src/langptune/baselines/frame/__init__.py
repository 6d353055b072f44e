"""What all baselines share: their protocol, what they may learn from, and how they are tried, fitted and ranked."""

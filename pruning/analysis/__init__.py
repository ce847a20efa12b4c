"""What pruning does to a network without fine-tuning: the sensitivity scan, histograms, damage by granularity."""

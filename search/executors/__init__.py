"""What runs evaluations: this process, or workers of its own that are given one job at a time."""

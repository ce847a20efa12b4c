"""What a study evaluates next: the guided search and the stock samplers."""

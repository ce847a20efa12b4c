"""Reports on one network: pruning curves, histograms, granularities compared."""

"""A pruned network as a folder of files: chosen, rebuilt, written, described and verified."""

"""Channels that can be removed: which belong together, and how they go while the rest stays the same."""

"""Channels that can be removed: which belong together, and how they go without a change of the rest."""

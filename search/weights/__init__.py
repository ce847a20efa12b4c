"""Weight files as they are found: read without running code, and fitted to a network."""

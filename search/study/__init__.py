"""The running study: from a config to finals."""

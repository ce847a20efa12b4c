"""The commands: one function each, from parsed arguments to a reply."""

"""Code that is not ours: loading what the user names, reading what it decides, and saying whose fault an error is."""

"""The user's own code: loading what the user names, reading what decides results, and telling whose fault an error is."""

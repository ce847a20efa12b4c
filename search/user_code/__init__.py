"""The user's own code: loading what the user names, reading what decides results, telling whose fault an error is."""

"""The running process: signals that end it, limits on other people's code, and what is said at its end."""

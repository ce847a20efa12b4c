"""The command line: what can be asked, and how every error ends in one line and an exit code."""

from search.cli.entry import main

__all__ = ["main"]

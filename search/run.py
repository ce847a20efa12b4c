"""The path that `search.study.start` had in 0.1, for code that imports it from here."""

from search.study.start import run_search

__all__ = ["run_search"]

"""Moved to `search.study.start`; kept for old imports."""

from search.study.start import run_search

__all__ = ["run_search"]

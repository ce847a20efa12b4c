"""Warnings that these packages log, on a terminal as wide as it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from search.cli.screen import Screen
from search.loggers import handled_by


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from search.wrapping import wrapped  # rich and numpy take a while, and most commands warn of nothing
        from spaces.printable import printable, shortened

        if _is_shown():
            return
        text = shortened(printable(record.getMessage()))
        with suppress(OSError):  # whoever read it is gone
            print(wrapped(text, Screen(2).columns), file=sys.stderr, flush=True)


def _is_shown() -> bool:
    """Whether the user's own code has had all that is logged written to stderr, as `logging.basicConfig` does."""
    ours = _below_bars(sys.stdout), _below_bars(sys.stderr)
    return any(_below_bars(getattr(one, "stream", None)) in ours for one in logging.getLogger().handlers)


def _below_bars(stream: Any) -> Any:
    """The stream itself, of which rich has another in its place while it shows progress bars."""
    return getattr(stream, "rich_proxied_file", stream)


@contextmanager
def logged_on_stderr() -> Iterator[None]:
    """While it lasts, a warning is lines of stderr that are broken between words, as a command's notes are."""
    with handled_by(_Lines(logging.WARNING)):
        yield

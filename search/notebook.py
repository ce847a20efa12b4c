"""What a person sees while a search runs in Python: in a notebook, one area of its cell that is written anew."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from search.loggers import handled_by
from search.process.interrupts import check
from search.progress import JobsShown, ProgressReporter, TerminalReporter, duration
from search.wrapping import NOTEBOOK, wrapped
from spaces.printable import printable, shortened

INTERVAL = 0.25
"""Seconds from one drawing to the next while steps are counted."""
MOST_NOTES = 30
"""Notes that stay in sight."""
BAR = 24
"""Characters of a bar."""


def usual_reporter() -> ProgressReporter:
    """What `run_search` shows without being told: a live area in a notebook, what the command shows on a terminal, and
    nothing elsewhere, as of a library.
    """
    if Console().is_jupyter:
        return NotebookReporter()
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return TerminalReporter() if on_terminal else ProgressReporter()


class NotebookReporter(ProgressReporter):
    """Notes, the headline and a bar for what runs, in one output of the cell that calls.

    Args:
        display: as of `IPython.display`, which is taken from the running notebook.
    """

    def __init__(self, display: Callable[..., Any] | None = None) -> None:
        self._display = display or sys.modules["IPython"].display.display
        self._area: Any = None
        self._notes, self._noted, self._headline = deque[str](maxlen=MOST_NOTES), 0, ""
        self._running: dict[str, tuple[str, int, int]] = {}
        self._drawn = 0.0

    def note(self, text: str) -> None:
        check()
        self._notes.append(shortened(printable(text)))
        self._noted += 1
        self._draw()

    def headline(self, text: str) -> None:
        self._headline = printable(text)
        self._draw()

    @contextmanager
    def stage(self, label: str) -> Iterator[Callable[[int, int], None]]:
        check()
        bars = _Bars(self)
        bars.begin(label, label)
        try:
            yield lambda done, total: bars.step(label, done, total)
        finally:
            bars.end(label)
        check()

    @contextmanager
    def jobs(self) -> Iterator[JobsShown]:
        yield _Bars(self)

    def show(self, key: str, label: str, done: int = 0, total: int = 0) -> None:
        """A bar for what runs by this name."""
        check()
        is_new = key not in self._running
        self._running[key] = printable(label), done, total
        if is_new or time.monotonic() - self._drawn >= INTERVAL:
            self._draw()

    def hide(self, key: str) -> None:
        """Its end."""
        del self._running[key]
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        content = {"text/plain": "\n".join(self._lines())}
        if self._area is None:
            self._area = self._display(content, raw=True, display_id=True)
        else:
            self._area.update(content, raw=True)

    def _lines(self) -> Iterator[str]:
        if self._noted > len(self._notes):
            yield f"({self._noted - len(self._notes)} earlier notes left out)"
        for text in filter(None, [*self._notes, self._headline]):
            yield wrapped(text, NOTEBOOK)
        width = max((len(label) for label, _, _ in self._running.values()), default=0)
        for label, done, total in self._running.values():
            full = min(done * BAR // total, BAR) if total else 0
            yield f"{label:{width}}  {'█' * full}{'░' * (BAR - full)}" + (f"  {done}/{total}" if total else "")


@contextmanager
def followed(watcher: ProgressReporter) -> Iterator[None]:
    """While it lasts, warnings that these packages log are notes in a notebook's area, not outputs of their own; what
    the area says last is not of a trial, nor of time that is left, but that all is done.
    """
    if not isinstance(watcher, NotebookReporter):
        yield
        return
    began = time.monotonic()
    with handled_by(_Notes(watcher)):
        yield
    watcher.headline(f"done after {duration(time.monotonic() - began)}")


class _Notes(logging.Handler):
    def __init__(self, reporter: NotebookReporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.note(record.getMessage())


class _Bars(JobsShown):
    """One bar a job, below the headline."""

    def __init__(self, reporter: NotebookReporter) -> None:
        self._reporter, self._labels = reporter, dict[str, str]()

    def begin(self, key: str, label: str) -> None:
        self._labels[key] = label
        self._reporter.show(key, label)

    def step(self, key: str, done: int, total: int) -> None:
        self._reporter.show(key, self._labels[key], done, total)

    def end(self, key: str) -> None:
        del self._labels[key]
        self._reporter.hide(key)

"""What a person sees while a command runs; everything here goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from search.process.interrupts import check
from spaces.printable import printable, shortened

PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal


class JobsShown:
    """Shows nothing; the interface of what follows several jobs at once, each by its key."""

    def begin(self, key: str, label: str) -> None:
        """A job has begun."""

    def step(self, key: str, done: int, total: int) -> None:
        """A job came further."""

    def end(self, key: str) -> None:
        """A job has ended, whatever came of it."""


class ProgressReporter:
    """Shows nothing; the interface of what follows a command."""

    def note(self, text: str) -> None:
        """One line the user should read."""

    @contextmanager
    def stage(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A stretch of work; the function takes (steps done, steps in all)."""
        yield lambda done, total: None

    @contextmanager
    def jobs(self) -> Iterator[JobsShown]:
        """A stretch of work in which several jobs run at once."""
        yield JobsShown()

    def headline(self, text: str) -> None:
        """The live line of a study: what ended last, best so far, time left."""


class _Bars(JobsShown):
    """One progress bar a job."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tasks = progress, dict[str, TaskID]()

    def begin(self, key: str, label: str) -> None:
        self._tasks[key] = self._progress.add_task(printable(label), total=None)

    def step(self, key: str, done: int, total: int) -> None:
        self._progress.update(self._tasks[key], completed=done, total=total)

    def end(self, key: str) -> None:
        self._progress.remove_task(self._tasks.pop(key))


class _Lines(JobsShown):
    """Now and then a line of all jobs that run."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._at, self._last = note, dict[str, tuple[str, int, int]](), time.monotonic()

    def begin(self, key: str, label: str) -> None:
        self._at[key] = label, 0, 0

    def step(self, key: str, done: int, total: int) -> None:
        self._at[key] = self._at[key][0], done, total
        if time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            self._note("; ".join(f"{printable(label)}: {at}/{of}" for label, at, of in self._at.values()))

    def end(self, key: str) -> None:
        del self._at[key]


class TerminalReporter(ProgressReporter):
    """Progress bars on a terminal; plain lines elsewhere. Whatever is shown ends by a signal that has come."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._headline, self._many = "", False

    def note(self, text: str) -> None:
        check()
        self._console.print(shortened(printable(text)), markup=False)

    def headline(self, text: str) -> None:
        self._headline = printable(text)
        if not self._console.is_terminal or self._many:
            self.note(text)

    @contextmanager
    def jobs(self) -> Iterator[JobsShown]:
        if not self._console.is_terminal:
            yield _Lines(self.note)
            return
        with self._bars() as progress:
            self._many = True
            try:
                yield _Bars(progress)
            finally:
                self._many = False

    @contextmanager
    def stage(self, label: str) -> Iterator[Callable[[int, int], None]]:
        label = printable(label)
        follow = self._bar if self._console.is_terminal else self._lines
        check()
        with follow(label) as show:

            def progress(done: int, total: int) -> None:
                check()
                show(done, total)

            yield progress
        check()

    @contextmanager
    def _bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        with self._bars() as progress:
            description = f"{self._headline}  {label}" if self._headline else label
            task = progress.add_task(description, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def _bars(self) -> Progress:
        columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeRemainingColumn()
        return Progress(*columns, console=self._console, transient=True)

    @contextmanager
    def _lines(self, label: str) -> Iterator[Callable[[int, int], None]]:
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_INTERVAL:
                last = time.monotonic()
                self.note(f"{label}: {done}/{total}")

        yield show


def duration(seconds: float) -> str:
    """Seconds as a person writes them.

    >>> duration(4.24), duration(75), duration(7384)
    ('4.2 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

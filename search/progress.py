"""What a person sees while a command runs; everything here goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from search.process.interrupts import check
from search.wrapping import packed, wrapped
from spaces.printable import printable, shortened
from spaces.wording import counted, percent

PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal
LONGEST_OUTCOME = 200
"""The most characters that the live display has of what ended last."""


@dataclass(frozen=True)
class Standing:
    """Where a study stands when a trial has ended.

    Attributes:
        last: the trial and what came of it.
        best: accuracy and size of the best trial so far within the limit, or `none yet`.
        limit: the largest share of the dense size; 1 is no limit.
        front: how many trials are on the front.
        done: finished trials, of whatever state.
        asked: trials in all.
        workers: trials that run at once, at most.
        seconds_left: None where unknown.
        failures: cause -> failed trials.
    """

    last: str
    best: str
    limit: float
    front: int
    done: int
    asked: int
    workers: int
    seconds_left: float | None
    failures: Mapping[str, int]

    @property
    def line(self) -> str:
        """For a log."""
        said = f"{self.last} | {self.done}/{self.asked}, best so far {self.best}, front {self.front}"
        return ", ".join([said, *self._time])

    @property
    def parts(self) -> list[str]:
        """For a terminal, each short, what is wanted most first."""
        within = f" within {self.limit * 100:.4g} % of dense" if self.limit < 1 else ""
        failed = ", ".join(f"{count} {cause}" for cause, count in self.failures.items())
        return [
            f"best so far{within}: {self.best}",
            f"front {self.front}",
            f"{self.done} of {counted(self.asked, 'trial')}",
            counted(self.workers, "worker"),
            *self._time,
            *([f"failed: {failed}"] if failed else []),
            shortened(self.last, LONGEST_OUTCOME),
        ]

    @property
    def _time(self) -> list[str]:
        return [f"about {duration(self.seconds_left)} left"] if self.seconds_left else []


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
        """The live line of a study: what ended last."""

    def standing(self, standing: Standing) -> None:
        """The same of a trial, with best so far and time left; a line unless a reporter shows more."""
        self.headline(standing.line)


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
            lines = (
                printable(label) + (f": {percent(at / of, 0)}" if of else "") for label, at, of in self._at.values()
            )
            self._note("; ".join(lines))

    def end(self, key: str) -> None:
        del self._at[key]


class _Display(Progress):
    """Bars below lines; `above` says the lines anew whenever it is drawn."""

    def __init__(self, console: Console, above: Callable[[], Iterable[str]]) -> None:
        self._above = above
        label = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
        super().__init__(label, BarColumn(bar_width=24), TimeRemainingColumn(), console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from (Text(line, overflow="fold", no_wrap=False) for line in self._above())
        yield from super().get_renderables()


class TerminalReporter(ProgressReporter):
    """Progress bars on a terminal; plain lines elsewhere. Whatever is shown ends by a signal that has come."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._above: list[str] = []

    def note(self, text: str) -> None:
        check()
        self._console.print(wrapped(shortened(printable(text)), self._columns), markup=False)

    def headline(self, text: str) -> None:
        if self._console.is_terminal:
            self._above = [printable(text)]
        else:
            self.note(text)

    def standing(self, standing: Standing) -> None:
        if self._console.is_terminal:
            self._above = [printable(part) for part in standing.parts]
        else:
            super().standing(standing)

    @contextmanager
    def jobs(self) -> Iterator[JobsShown]:
        if not self._console.is_terminal:
            yield _Lines(self.note)
            return
        with self._display() as progress:
            yield _Bars(progress)

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
        with self._display() as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @property
    def _columns(self) -> int | None:
        """Of the terminal, whose size may change; None where there is none."""
        return self._console.width if self._console.is_terminal else None

    def _display(self) -> Progress:
        return _Display(self._console, lambda: packed(self._above, self._console.width))

    @contextmanager
    def _lines(self, label: str) -> Iterator[Callable[[int, int], None]]:
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if total and time.monotonic() - last >= PLAIN_INTERVAL:  # of an unknown total there is nothing to tell yet
                last = time.monotonic()
                self.note(f"{label}: {percent(done / total, 0)}")

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
